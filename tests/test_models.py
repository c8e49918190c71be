"""Networks by name: their sizes, their seeds, their features, and the count of the images they saw."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from toolkit.core.errors import FailureError, UsageError
from toolkit.models.resnet_cifar import BasicBlock
from toolkit.models.zoo import CIFAR_RESNETS, FeatureReader, build_model, head_of, images_seen, load_weights


def images(count, size=8, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def parameters_by_hand(depth, classes, width):
    """He et al. 2016, section 4.2, option A: 3×3 convolutions without bias, each with a scale and a shift."""
    blocks = (depth - 2) // 6
    convolutions = [(3, width)]
    for channels_in, channels in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
        convolutions += [(channels_in, channels)] + [(channels, channels)] * (2 * blocks - 1)
    return sum(9 * i * o + 2 * o for i, o in convolutions) + classes * (4 * width + 1)


# the counts the literature gives: 0.27, 0.46, 0.66, 0.85 and 1.7 million
PUBLISHED = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962}


@pytest.mark.parametrize("arch", CIFAR_RESNETS)
@pytest.mark.parametrize(("classes", "width"), [(10, 16), (100, 5)])
def test_resnets_have_the_papers_number_of_parameters(arch, classes, width):
    parameters = sum(p.numel() for p in build_model(arch, classes, width).parameters())
    assert parameters == parameters_by_hand(int(arch.removeprefix("resnet")), classes, width)
    if (classes, width) == (10, 16) and arch in PUBLISHED:
        assert parameters == PUBLISHED[arch]


@pytest.mark.parametrize("arch", CIFAR_RESNETS)
def test_resnets_have_as_many_layers_as_their_name_says(arch):
    weights = [name for name, p in build_model(arch, 10, width=2).named_parameters() if p.dim() > 1]
    assert len(weights) == int(arch.removeprefix("resnet"))


@pytest.mark.parametrize("size", [8, 9, 28, 33])
def test_resnets_take_any_size_from_8_up(size):
    with torch.no_grad():
        assert build_model("resnet8", 7, width=4)(images(2, size)).shape == (2, 7)


def test_a_shortcut_subsamples_and_pads_channels_with_zeros():
    block = BasicBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)  # what remains is the shortcut
    x_bchw = images(2, 6)[:, :1].expand(-1, 4, -1, -1) * torch.arange(1, 5)[:, None, None]
    expected = torch.zeros(2, 8, 3, 3)
    for y in range(3):
        for x in range(3):
            expected[:, 2:6, y, x] = x_bchw[:, :, 2 * y, 2 * x].relu()
    assert torch.equal(block(x_bchw), expected)


def test_a_shortcuts_gradient_stays_channels_last():
    x_bchw = torch.rand(2, 16, 7, 7).to(memory_format=torch.channels_last).requires_grad_()
    (gradient_bchw,) = torch.autograd.grad(BasicBlock(16, 32, stride=2).shortcut(x_bchw).sum(), x_bchw)
    assert gradient_bchw.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("arch", ["resnet8", "torchvision:squeezenet1_1"])
def test_the_same_seed_builds_the_same_network(arch):
    torch.manual_seed(1)
    first = build_model(arch, 10, seed=3)
    torch.manual_seed(2)
    assert same_weights(first, build_model(arch, 10, seed=3))
    assert not same_weights(first, build_model(arch, 10, seed=4))


def test_building_leaves_torchs_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_model("resnet8", 10, seed=9)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_building_leaves_the_gpus_generator_alone():
    torch.cuda.manual_seed(0)
    before = torch.cuda.get_rng_state()
    build_model("resnet8", 10, seed=9)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_torchvision_network_is_torchvisions_own():
    torch.manual_seed(5)
    theirs = get_model("squeezenet1_1", weights=None, num_classes=10)
    for arch in ("torchvision:squeezenet1_1", "squeezenet1_1"):
        assert same_weights(build_model(arch, 10, seed=5), theirs)


@pytest.mark.parametrize(
    ("arch", "nearest"),
    [
        ("resnet-20", "resnet20"),
        ("resnet11", "resnet110"),
        ("mobilenet_v", "mobilenet_v2"),
        ("torchvision:resnet19", "torchvision:resnet18"),
        ("torchvision:squeezenet", "torchvision:squeezenet1_"),
    ],
)
def test_an_unknown_architecture_suggests_one_that_can_be_built(arch, nearest):
    with pytest.raises(UsageError, match="did you mean") as refusal:
        build_model(arch, 10)
    suggested = re.search(r"did you mean (\S+)\?", str(refusal.value)).group(1)
    assert suggested.startswith(nearest)
    build_model(suggested, 10)


@pytest.mark.parametrize(("arch", "width"), [("resnet20", 0), ("torchvision:resnet18", 32)])
def test_a_width_the_architecture_cannot_have_is_refused(arch, width):
    with pytest.raises(UsageError, match="--width"):
        build_model(arch, 10, width=width)


@pytest.mark.parametrize("arch", ["resnet8", "resnet20"])
def test_the_reader_gives_the_networks_own_logits(arch):
    model = build_model(arch, 10, width=8).eval()
    x_bchw = images(4, 12)
    with torch.no_grad():
        features_bd, logits_bc = FeatureReader(model)(x_bchw)
        expected = model(x_bchw)
    assert features_bd.shape == (4, 32)
    assert features_bd.dtype == logits_bc.dtype == torch.float32
    torch.testing.assert_close(logits_bc, expected)


def test_the_reader_gives_a_torchvision_networks_features():
    model = build_model("torchvision:resnet18", 10).eval()
    x_bchw = images(2, 32)
    with torch.no_grad():
        features_bd, logits_bc = FeatureReader(model)(x_bchw)
        expected = create_feature_extractor(model, {"flatten": "features", "fc": "logits"})(x_bchw)
    torch.testing.assert_close(features_bd, expected["features"])
    torch.testing.assert_close(logits_bc, expected["logits"])


def test_logits_keep_float32_under_bfloat16_autocast():
    model = build_model("resnet8", 10, width=4).eval()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(images(4)).dtype == torch.bfloat16
            features_bd, logits_bc = FeatureReader(model)(images(4))
        assert features_bd.dtype == logits_bc.dtype == torch.float32
        assert torch.equal(logits_bc, F.linear(features_bd, model.fc.weight, model.fc.bias))
    assert not torch.equal(logits_bc, logits_bc.bfloat16().float())


def test_reading_leaves_no_hook_behind_even_after_an_error():
    model = build_model("resnet8", 10, width=4)
    reader = FeatureReader(model)
    reader(images(2))
    with pytest.raises(RuntimeError):
        reader(torch.zeros(2, 5, 8, 8))
    assert not model.fc._forward_pre_hooks


def test_without_a_linear_layer_the_logits_stand_for_features():
    model = build_model("torchvision:squeezenet1_1", 10).eval()
    with torch.no_grad():
        features_bd, logits_bc = FeatureReader(model)(images(2, 32))
        assert torch.equal(logits_bc, model(images(2, 32)))
    assert head_of(model) is None
    assert features_bd is logits_bc


def test_the_head_is_the_linear_layer_that_gives_the_logits():
    model = build_model("torchvision:mobilenet_v3_small", 3).eval()
    linears = [layer for layer in model.classifier if isinstance(layer, torch.nn.Linear)]
    assert len(linears) == 2
    assert head_of(model, images(2, 32)) is linears[1]
    assert linears[1].out_features == 3


def test_images_seen_are_counted_for_each_network_and_in_all():
    one, other, before = build_model("resnet8", 10, width=2), build_model("resnet8", 10, width=2), images_seen()
    with torch.no_grad():
        one(images(5))
        one.eval()(images(2))
        FeatureReader(other)(images(3))
    assert (images_seen(one), images_seen(other), images_seen() - before) == (7, 3, 10)


def test_a_copy_counts_for_itself():
    model = build_model("resnet8", 10, width=2)
    with torch.no_grad():
        model(images(2))
        twin = copy.deepcopy(model)
        twin(images(3))
    assert (images_seen(model), images_seen(twin)) == (2, 5)


def test_counting_adds_nothing_to_the_weights():
    model = build_model("resnet8", 10, width=2)
    load_weights(model, build_model("resnet8", 10, width=2, seed=1).state_dict(), "teacher.pt")
    assert same_weights(model, build_model("resnet8", 10, width=2, seed=1))


@pytest.mark.parametrize(("arch", "classes"), [("resnet14", 10), ("resnet8", 100)])
def test_weights_that_do_not_fit_are_refused_by_the_name_of_their_file(arch, classes):
    model, state = build_model("resnet8", 10, width=2), build_model(arch, classes, width=2).state_dict()
    with pytest.raises(FailureError, match=r"^teacher\.pt: .*do not fit"):
        load_weights(model, state, "teacher.pt")
