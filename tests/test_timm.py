"""timm's teachers: their files from Hugging Face's hub, which a server of this test's own plays, what timm converts
itself, and ImageNet's folders by their names. Weights are real state_dicts, of random numbers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toolkit
from tests.conftest import kdtool, made, refused
from tests.test_pretrained import DATA, FLOAT32, Pictures
from toolkit.core.errors import FailureError
from toolkit.formats.cache import open_cache
from toolkit.models.class_maps import mapped, matched
from toolkit.models.pretrained import PretrainedTeacher, build_network, pretrained_teacher, wordnet_numbers
from toolkit.models.weight_files import weights_file
from toolkit.pipeline.library_teachers import _network

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'kdtool[timm]'")
safetensors = pytest.importorskip("safetensors.torch")
hub_constants = pytest.importorskip("huggingface_hub.constants")

TEACHER = "timm:test_resnet.r160_in1k"  # one that timm keeps for tests: half a million weights
COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Hugging Face's hub, as far as it is asked: one file, which it sends whole or breaks off."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.content, self.sent, self.asked = content, len(content), list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response(200)
        for name, value in {
            "ETag": f'"{hashlib.sha256(self.server.content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(self.server.content)),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.server.content[: self.server.sent])

    def log_message(self, *words: Any) -> None:
        pass


def ask(patch: pytest.MonkeyPatch, address: str) -> None:
    """As HF_ENDPOINT would, had it been there when the client was imported."""
    patch.setattr(hub_constants, "ENDPOINT", address)
    patch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's and Hugging Face's caches are empty, and the hub is where nobody listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    ask(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(TEACHER, 1000).state_dict()


@pytest.fixture
def hub(state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(safetensors.save(state))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    ask(monkeypatch, server.address)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def put(teacher: PretrainedTeacher, folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """The file where a user is told to put it."""
    file = folder / "torch" / "hub" / "checkpoints" / teacher.file_name
    file.parent.mkdir(parents=True)
    if file.suffix == ".safetensors":
        safetensors.save_file(state, file)
    else:
        torch.save(state, file)
    return file


# Names


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("timm:resnt18", "did you mean"),
        ("timm:resnet18.nothing", "it has resnet18.a1_in1k"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "have no classes"),
    ],
)
def test_a_name_that_timm_has_no_classifier_of_is_refused(reference: str, told: str, tmp_path: Path):
    refused(kdtool("cache-teacher", "-w", tmp_path, *DATA, "--teacher", reference), 2, told)


# Files


def test_a_file_of_the_hub_comes_by_its_own_client_into_its_own_cache(hub: Hub, tmp_path: Path):
    file = weights_file(pretrained_teacher(TEACHER))
    assert file.is_relative_to(tmp_path / "hf") and file.read_bytes() == hub.content
    assert hub.asked[-1] == "GET /timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert not (tmp_path / "torch").exists()
    hub.asked.clear()
    assert weights_file(pretrained_teacher(TEACHER), download=False) == file
    assert not hub.asked


def test_a_download_that_breaks_off_is_one_line_and_nothing_is_kept(hub: Hub, tmp_path: Path):
    hub.sent -= 1000
    teacher = pretrained_teacher(TEACHER)
    with pytest.raises(FailureError, match=r"not there, and it could not be downloaded \(.*put it there") as told:
        weights_file(teacher)
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / teacher.file_name) in str(told.value)
    assert pretrained_teacher(TEACHER).elsewhere is None
    hub.sent = len(hub.content)
    assert weights_file(pretrained_teacher(TEACHER)).read_bytes() == hub.content


def test_where_the_hub_is_not_reached_or_not_wanted_a_line_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    teacher = pretrained_teacher(TEACHER)
    words = (str(tmp_path / "torch" / "hub" / "checkpoints" / teacher.file_name), f"Get {teacher.url}", "put it there")
    asked = ("cache-teacher", "-w", tmp_path / "work", *DATA, "--teacher", TEACHER)
    refused(kdtool(*asked), 1, *words)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    refused(kdtool(*asked), 1, *words, "offline")


def test_a_cache_that_cannot_be_written_is_one_line(hub: Hub, tmp_path: Path):
    (tmp_path / "hf").touch()
    with pytest.raises(FailureError, match=r"hf: could not be written .*Set HF_HOME"):
        weights_file(pretrained_teacher(TEACHER))


def test_a_file_put_there_by_hand_is_taken_if_it_is_whole(state: dict[str, torch.Tensor], tmp_path: Path):
    teacher = pretrained_teacher(TEACHER)
    file = put(teacher, tmp_path, state)
    assert weights_file(teacher) == file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FailureError, match=r"not readable .*Delete .*run the same command again"):
        _network(teacher, file)


# Weights


def test_what_timm_converts_itself_is_left_to_timm(tmp_path: Path):
    """A vision transformer's, whose patches are cut by a linear layer in the file."""
    teacher = pretrained_teacher("timm:test_vit.r160_in1k")
    network = build_network(teacher.arch, 1000).eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    with pytest.raises(RuntimeError, match=r"patch_embed\.proj\.weight"):
        network.load_state_dict(state)
    found = _network(teacher, put(teacher, tmp_path, state)).eval()
    x_bchw = torch.randn(2, 3, *teacher.crop, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found(x_bchw), network(x_bchw))
    assert "state_dict" not in found.pretrained_cfg


@pytest.mark.parametrize("kind", ["another's", "none"])
def test_weights_that_do_not_fit_timms_network_are_refused(kind: str, state: dict[str, torch.Tensor], tmp_path: Path):
    teacher = pretrained_teacher(TEACHER)
    state.pop(next(iter(state)))
    file = put(teacher, tmp_path, {} if kind == "none" else state)
    with pytest.raises(FailureError, match=r"holds no weights" if kind == "none" else r"do not fit .*Missing key"):
        _network(teacher, file)


# DLA's and Inception v3's builders are those whose weights timm does not load strictly
LENIENT = ("timm:dla46_c", "timm:inception_v3.tv_in1k")


@pytest.mark.parametrize("reference", LENIENT)
@pytest.mark.parametrize("lacking", ["all", "one"])
def test_no_tensor_is_left_as_it_was_drawn_where_timm_would_be_silent(
    reference: str, lacking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    teacher = pretrained_teacher(reference)
    state = drawn(teacher)
    weight = next(name for name, tensor in state.items() if tensor.ndim == 4)
    kept = {name: tensor for name, tensor in state.items() if name != weight}
    file = put(teacher, tmp_path, kept if lacking == "one" else {f"module.{name}": state[name] for name in state})
    with pytest.raises(FailureError, match=rf"do not fit the architecture \(.* of the network's .* such as {weight}\)"):
        _network(teacher, file)
    assert not caplog.records  # of timm's, of all names, which would be shown beside our line


def drawn(teacher: PretrainedTeacher) -> dict[str, torch.Tensor]:
    """Weights of which no tensor is as timm would begin with it; where it has two names, the same by both."""
    network, draw = build_network(teacher.arch, teacher.classes), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in {tensor.data_ptr(): tensor for tensor in network.state_dict().values()}.values():
            if tensor.is_floating_point():
                tensor.mul_(1.1).add_(0.01 * torch.rand(tensor.shape, generator=draw))
    return {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}


def comes_back(name: str, folder: Path) -> None:
    """All tensors of a network of timm's, and its logits, bit for bit, out of a file."""
    teacher = pretrained_teacher(f"timm:{name}")
    state = drawn(teacher)
    found = _network(teacher, put(teacher, folder, state)).eval()
    loaded = found.state_dict()
    assert loaded.keys() == state.keys()
    assert [key for key, tensor in state.items() if not torch.equal(loaded[key], tensor)] == []
    network = build_network(teacher.arch, teacher.classes).eval()
    network.load_state_dict(state)
    x_bchw = torch.randn(1, 3, *teacher.crop, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found(x_bchw).nan_to_num(7), network(x_bchw).nan_to_num(7))


FEW = ("dla46_c", "test_convnext", "test_efficientnet", "test_nfnet", "test_vit3", "levit_128s", "xcit_nano_12_p16_224")

# the smallest of each of timm's families with a classifier
FAMILIES = """
    beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coatnet_nano_rw_224 convit_tiny
    convmixer_1024_20_ks9_p14 convnext_atto convnextv2_atto crossvit_tiny_240 csatv2 cspresnet50 davit_tiny
    deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 densenet121 dla34 dla60_res2net dpn68
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvit_b0 efficientvit_m0
    ese_vovnet19b_dw eva02_tiny_patch14_336 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_100
    ghostnetv2_100 ghostnetv3_100 gmlp_s16_224 hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224 hrnet_w18_small
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 legacy_seresnet18 legacy_xception levit_conv_128s
    mambaout_femto maxvit_rmlp_pico_rw_256 mixer_b16_224 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small
    mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny_jx nextvit_small nf_resnet50 pit_ti_224
    pit_ti_distilled_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9
    repvgg_a0 res2net50_26w_4s resmlp_12_224 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42b semnasnet_075
    sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swin_s3_tiny_224
    swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 tf_efficientnet_b0 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224
    tresnet_m twins_svt_small vgg11 visformer_tiny vit_base_patch32_clip_224 vit_medium_patch16_reg1_gap_256
    vit_tiny_patch16_224 vit_xsmall_patch16_clip_224 vitamin_small_224 volo_d1_224 wide_resnet50_2 xception41
    xcit_tiny_12_p8_224 cpubone_b0_bfrobust cspnext_tiny efficientvim_m1 iformer_s lcnetv2_small lowformer_b0
    naflexvit_base_patch16_gap nasnetalarge pnasnet5large vit_relpos_small_patch16_224 vit_small_r26_s32_224
"""


@pytest.mark.parametrize("name", FEW)
def test_timms_networks_come_out_of_a_file_bit_for_bit(name: str, tmp_path: Path):
    comes_back(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in FAMILIES.split() if timm.models.is_model_pretrained(name)])
def test_a_network_of_each_of_timms_families_comes_out_of_a_file_bit_for_bit(name: str, tmp_path: Path):
    comes_back(name, tmp_path)


def test_a_teacher_of_timm_is_cached_by_its_own_record(state: dict[str, torch.Tensor], tmp_path: Path):
    teacher, work = pretrained_teacher("timm:test_resnet"), tmp_path / "work"
    assert (teacher.name, teacher.crop) == ("timm-test_resnet.r160_in1k", (160, 160))
    file = put(teacher, tmp_path, state)
    made("cache-teacher", "-w", work, *DATA, "--teacher", "timm:test_resnet", *FLOAT32)
    told = made("verify-cache", "-w", work, *DATA, "--teacher", teacher.name, "--samples", 8)
    assert told["teacher"] == teacher.name
    network = build_network(TEACHER, 1000).eval()
    network.load_state_dict(state)
    with open_cache(work / "teachers" / teacher.name / "cache.h5") as cache:
        assert cache.record.teacher_weights["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        pixels = np.concatenate([images for images, _ in toolkit.slot_images(work / "data" / DATA[1], 0)])
        mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
        with torch.no_grad():
            expected = network((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)[:, [2, 0, 1]]
        np.testing.assert_allclose(cache.read("slots/0/logits"), expected.numpy(), atol=1e-4)


# ImageNet's folders

IMAGENETTE = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079")  # tench, … : five of its ten


def imagenette(split: str) -> Pictures:
    return Pictures(IMAGENETTE, 20)


def test_imagenets_folders_are_those_that_timm_knows(monkeypatch: pytest.MonkeyPatch):
    teacher = pretrained_teacher("torchvision:resnet18")
    names = wordnet_numbers()
    assert len(names) == 1000 and list(names) == sorted(names)
    monkeypatch.setattr("toolkit.models.class_maps.wordnet_numbers", lambda: pytest.fail("they match by their order"))
    found = matched(names, teacher)
    assert found.columns_c is None and not found.by_name


def test_some_of_imagenets_folders_are_found_among_torchvisions_words(tmp_path: Path):
    teacher = pretrained_teacher("torchvision:resnet18")
    (categories,) = teacher.class_names
    columns_c = matched(IMAGENETTE, teacher).columns_c
    words = ["tench", "English springer", "cassette player", "chain saw", "church"]
    assert [categories[column].casefold() for column in columns_c] == [word.casefold() for word in words]
    file = tmp_path / "map.yaml"
    file.write_text("fish: n01440764\nsaw: n03000684\n")
    assert mapped(["fish", "saw"], teacher, file).columns_c == (columns_c[0], columns_c[3])
