"""Teachers by name: networks of torchvision and timm with weights that these libraries have a record of.

A name is `torchvision:<network>@<weights>` or `timm:<network>.<weights>`; without weights, the library's usual ones.
All that is said of a teacher here is read from the library's record: nothing is downloaded, and no network is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.imported import told
from toolkit.models.counting import counted

_NEAREST = 5
_NO_CLASSES = "these weights are for features and have no classes. Name others"
_TIMM_FILE = "model.safetensors"  # where a record names no other file on the hub
# as torchvision itself builds them around its weights: they turn ImageNet's normalisation into their own
_NORMALISING = ("googlenet", "inception_v3")


class HubFile(NamedTuple):
    """A file of Hugging Face's hub, of its main branch where no revision is named."""

    repository: str
    file: str
    revision: str | None = None


@dataclass(frozen=True)
class PretrainedTeacher:
    """What a library's record says of one network and its weights.

    `reference` is the whole name, `name` what its artifacts are called, `arch` the network as `build_model` knows it,
    built with `settings`. The weights are the file `file_name` at `url`; of Hugging Face's hub, `hub` names it there,
    and they may lie `elsewhere` already, in its own cache. `class_names` are ways of naming its `classes`, each in
    their order; `imagenet` where they are ImageNet's 1,000. `mean` and `std` normalise 0 … 1 pixel values; images were
    resized to `resize` pixels and cut to `crop` (height, width) for the accuracy `top1`, in percent. None where the
    record does not say.
    """

    reference: str
    name: str
    arch: str
    url: str
    file_name: str
    class_names: tuple[tuple[str, ...], ...] = field(repr=False)
    classes: int
    imagenet: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: tuple[int, int]
    resize: int | None
    top1: float | None
    settings: dict[str, Any] = field(default_factory=dict)
    hub: HubFile | None = None
    elsewhere: Path | None = None


def pretrained_teacher(reference: str) -> PretrainedTeacher:
    """The teacher of a name such as torchvision:resnet50@IMAGENET1K_V2.

    Raises UsageError, with the nearest names, for a network or weights that the library has no record of, and for those
    that do not classify images; FailureError where timm is needed and can't be imported.
    """
    library, _, name = reference.partition(":")
    return LIBRARIES[library](name)


def build_network(arch: str, classes: int, **settings: Any) -> nn.Module:
    """A library's network, `torchvision:<name>` or `timm:<name>`, freshly initialised from torch's generator: maps (b,
    3, h, w) to logits (b, classes), float32. Raises UsageError or FailureError for one that isn't there."""
    library, _, name = arch.partition(":")
    if library == "timm":
        timm = _timm(f"--arch {arch}")
        if not timm.is_model(name):
            raise UsageError(f"--arch {arch}: timm has no such network{_nearest(name, timm.list_models())}")
        try:
            return counted(timm.create_model(name, pretrained=False, num_classes=classes))
        except (RuntimeError, TypeError) as error:  # no such tag, or no network of classes
            raise UsageError(f"--arch {arch}: timm can't build it: {told(error)}") from error
    from torchvision.models import get_model

    return counted(get_model(name, weights=None, num_classes=classes, **settings))


def timms_network(teacher: PretrainedTeacher, weights: dict[str, Any], source: str) -> nn.Module:
    """A network of timm's holding the weights of a file, `source`, converted by timm where its record says how.

    Raises FailureError where they don't fit, and where any tensor of the network is not among them: of some networks
    (DLA, Inception v3) timm would leave it as it was drawn, and say nothing.
    """
    timm = _timm(f"--teacher {teacher.reference}")
    try:
        with _all_loaded() as loaded:
            network = timm.create_model(
                teacher.arch.removeprefix("timm:"), pretrained=True, pretrained_cfg_overlay={"state_dict": weights}
            )
        if network not in loaded:
            raise RuntimeError("timm takes none for it")
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:  # timm's own conversions
        reason = " ".join(str(error).split())[:300]
        raise FailureError(
            f"{source}: its weights do not fit the architecture ({reason}). Name the network that they are of"
        ) from error
    network.pretrained_cfg.pop("state_dict", None)  # it would be held twice
    return counted(network)


@contextmanager
def _all_loaded() -> Iterator[list[nn.Module]]:
    """Gives the networks that are given weights within the block; raises RuntimeError for one that lacks some. Torch
    tells which only whoever gives them, and that is timm, which asks some builders' networks for no more than they
    find."""
    load, loaded = nn.Module.load_state_dict, list[nn.Module]()

    def whole(network: nn.Module, *arguments: Any, **named: Any) -> Any:
        result = load(network, *arguments, **named)
        if result.missing_keys:
            lacking, of = len(result.missing_keys), len(network.state_dict())
            raise RuntimeError(f"{lacking:,} of the network's {of:,} tensors are not there, such as {result[0][0]}")
        loaded.append(network)
        return result

    nn.Module.load_state_dict = whole  # type: ignore[assignment, method-assign]
    try:
        yield loaded
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def without_dots(weights: dict[str, Any]) -> dict[str, Any]:
    """A DenseNet's weights, stored before torch forbade dots in the names of layers, by the names they have now."""
    dotted = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    if not any(map(dotted.search, weights)):
        return weights  # with whatever torch keeps beside it
    return {dotted.sub(r"\1\2", name): tensor for name, tensor in weights.items()}


def _of_torchvision(name: str) -> PretrainedTeacher:
    from torchvision import models

    asked, at, wanted = name.partition("@")
    _need_classifier(f"--teacher torchvision:{name}", asked, models)
    known = models.get_model_weights(asked)
    if (at and wanted not in known.__members__) or not len(known):
        there = f"has the weights {', '.join(one.name for one in known)}" if len(known) else "has no weights"
        raise UsageError(f"--teacher torchvision:{name}: unknown weights '{wanted}': {asked} {there} in torchvision")
    weights = known[wanted or "DEFAULT"]
    if not weights.meta["categories"]:
        raise UsageError(f"--teacher torchvision:{name}: {_NO_CLASSES}")
    shown, categories = weights.transforms(), tuple(weights.meta["categories"])
    settings: dict[str, Any] = {}
    if asked in _NORMALISING:
        settings = {"transform_input": True, "init_weights": False}
    elif asked.startswith("vit_"):
        settings = {"image_size": weights.meta["min_size"][0]}  # whose position embeddings these are
    return PretrainedTeacher(
        reference=f"torchvision:{asked}@{weights.name}",
        name=f"{asked}-{weights.name}",  # no network of torchvision's has a - in its name
        arch=f"torchvision:{asked}",
        url=weights.url,
        file_name=weights.url.rpartition("/")[2],
        class_names=(categories,),
        classes=len(categories),
        imagenet=weights.name.startswith("IMAGENET1K"),
        mean=tuple(shown.mean),
        std=tuple(shown.std),
        crop=(shown.crop_size[0], shown.crop_size[0]),
        resize=shown.resize_size[0],
        top1=weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1"),
        settings=settings,
    )


def _need_classifier(asked: str, name: str, models: ModuleType) -> None:
    """Raises UsageError unless torchvision has a network of that name that classifies images."""
    classifiers = models.list_models(module=models)
    if name in classifiers:
        return
    if name in models.list_models():
        kind = models.get_model_builder(name).__module__.removeprefix("torchvision.models.").partition(".")[0]
        raise UsageError(f"{asked}: {name} is torchvision's for {kind}; a teacher must classify images, in float")
    raise UsageError(f"{asked}: torchvision has no network '{name}'{_nearest(name, classifiers)}")


def _of_timm(name: str) -> PretrainedTeacher:
    asked = f"--teacher timm:{name}"
    timm = _timm(asked)
    known = timm.list_pretrained()
    if not timm.models.is_model_pretrained(name):
        tags = [one for one in known if one.startswith(f"{name.partition('.')[0]}.")]
        there = f"; it has {', '.join(tags[:_NEAREST])}" if tags else _nearest(name, known)
        raise UsageError(f"{asked}: timm has no weights of that name{there}")
    record = timm.get_pretrained_cfg(name)
    if not record.num_classes:
        raise UsageError(f"{asked}: {_NO_CLASSES}")
    whole = f"{record.architecture}.{record.tag}" if record.tag else record.architecture
    url, hub = _timm_file(asked, record)
    kept_as = f"{hub.repository.replace('/', '--')}--{hub.file}" if hub else url.rpartition("/")[2]
    height, width = record.input_size[-2:]
    return PretrainedTeacher(
        reference=f"timm:{whole}",
        name=f"timm-{whole}",
        arch=f"timm:{whole}",
        url=url,
        file_name=kept_as,
        class_names=_timm_names(record),
        classes=record.num_classes,
        imagenet=record.num_classes == 1000,
        mean=tuple(record.mean),
        std=tuple(record.std),
        crop=(height, width),
        resize=int(height / record.crop_pct),
        top1=None,
        hub=hub,
        elsewhere=_in_hubs_cache(hub) if hub else None,
    )


def _timm_file(asked: str, record: Any) -> tuple[str, HubFile | None]:
    """(where it is downloaded from, what it is called on the hub)"""
    if record.hf_hub_id:
        try:
            from huggingface_hub import hf_hub_url
        except ImportError as error:
            raise FailureError(f"{asked}: timm's huggingface_hub could not be imported: {told(error)}") from error
        repository, _, revision = record.hf_hub_id.partition("@")
        hub = HubFile(repository, record.hf_hub_filename or _TIMM_FILE, revision or None)
        return hf_hub_url(hub.repository, hub.file, revision=hub.revision), hub
    if not record.url or record.custom_load:
        raise UsageError(f"{asked}: timm's record of it names no file of weights that torch reads. Name others")
    return record.url if isinstance(record.url, str) else record.url[0], None


def _in_hubs_cache(hub: HubFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub.repository, hub.file, revision=hub.revision)
    return Path(found) if isinstance(found, str) else None


def wordnet_numbers() -> tuple[str, ...] | None:
    """What ImageNet calls the folders of its 1,000 classes (n01440764 …), in their order; None without timm, which has
    a list of them."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    return tuple(ImageNetInfo("imagenet-1k").label_names())


def _timm_names(record: Any) -> tuple[tuple[str, ...], ...]:
    """The names in timm's record, or of the part of ImageNet that has as many classes: WordNet's numbers, its words,
    and torchvision's of the 1,000."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if record.label_names:
        return (tuple(record.label_names),)
    part = infer_imagenet_subset({"num_classes": record.num_classes})
    if part is None:
        return ()
    known = ImageNetInfo(part)
    names = (tuple(known.label_names()), tuple(known.label_descriptions()))
    return (*names, *_of_torchvision("resnet18").class_names) if record.num_classes == 1000 else names


def _timm(asked: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        if error.name == "timm":
            raise FailureError(f"{asked}: timm is not installed. Run: pip install 'kdtool[timm]'") from error
        raise FailureError(f"{asked}: timm could not be imported: {told(error)}") from error
    return timm  # type: ignore[no-any-return]


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=_NEAREST)
    return f": did you mean {', '.join(near)}?" if near else f"; it has {', '.join(known[:_NEAREST])} and more"


LIBRARIES: dict[str, Callable[[str], PretrainedTeacher]] = {"torchvision": _of_torchvision, "timm": _of_timm}
