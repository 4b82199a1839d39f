"""Weights of whole backbones from files, against the models that wrote them, and the files that are none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.models.network import Network
from distbranch.models.weights_file import match_colours, read_pretrained, read_trained_colours
from distbranch.tasks import Task

TASKS = (Task("a"), Task("b"))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)  # of the data
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = "test_resnet"


def model_of(name: str, **arguments: object) -> nn.Module:
    """With a classifier, as a file of it has one, and with statistics that are not those of the beginning."""
    torch.manual_seed(4)
    model: nn.Module = timm.create_model(name, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1)
    return model.eval()


def state_of(name: str = SMALL) -> dict[str, Tensor]:
    return dict(model_of(name).state_dict())


def load(backbone: Backbone, place: Path) -> Network:
    network = Network(Architecture(backbone, TASKS), MEAN, STD).eval()
    network.load_state_dict(network.state_dict() | read_pretrained(backbone, str(place)))
    return network


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("timm:test_resnet", "test_resnet"),
        ("timm:test_vit", "test_vit"),
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
    ],
)
@torch.no_grad()
def test_the_network_computes_on_pixels_what_the_model_of_the_file_does(
    source: str, name: str, tmp_path: Path
) -> None:
    size = (160, 160) if name == "test_vit" else (64, 64)
    model = model_of(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = match_colours(Backbone(source, size), MEAN, STD)
    assert backbone.input_affine is not None
    network = load(backbone, tmp_path / "weights.pth")
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)

    mean, std = read_trained_colours(backbone) if backbone.is_of_timm else IMAGENET
    normalised = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    features = model.forward_head(model.forward_features(normalised), pre_logits=True)  # type: ignore[operator]
    expected = features @ network.heads.weight.t() + network.heads.bias
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(network(images, flat=True), expected, rtol=0, atol=1e-5 * scale)
    again = Architecture(Backbone.from_json(backbone.to_json()), TASKS)
    assert again == network.architecture


def test_the_same_colours_need_no_affine() -> None:
    backbone = Backbone("resnet18", (64, 64))
    assert match_colours(backbone, *IMAGENET) == backbone


@torch.no_grad()
def test_wrapped_and_safe_files_and_those_of_parallel_training_give_the_same(
    tmp_path: Path,
) -> None:
    backbone, state = Backbone(f"timm:{SMALL}", (64, 64)), state_of()
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "ddp.bin")
    save_file(state, tmp_path / "safe.safetensors")
    expected = read_pretrained(backbone, str(tmp_path / "plain.pth"))
    for name in ("wrapped.pth", "ddp.bin", "safe.safetensors"):
        found = read_pretrained(backbone, str(tmp_path / name))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_position_embeddings_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    state = state_of("test_vit")
    torch.save(state, tmp_path / "weights.pth")
    found = read_pretrained(Backbone("timm:test_vit", (64, 64)), str(tmp_path / "weights.pth"))
    embedding = found["units.stem.0.tail.steps.pos_embed"]
    assert embedding.shape[1] == 1 + 4 * 4 < state["pos_embed"].shape[1]


class Attack:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("code ran",)


def lacking(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("layer1.0.conv")}


def with_more(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"neck.weight": torch.zeros(2, 2)}


def misshapen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"layer1.0.conv1.weight": torch.zeros(2, 2, 3, 3)}


def infinite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"layer1.0.bn1.weight": torch.full_like(state["layer1.0.bn1.weight"], torch.inf)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lacking, r"lack layer1\.0\.conv1\.weight.* Give a \.safetensors or \.pth file of test_resnet"),
        (with_more, r"hold besides neck\.weight\. Give"),
        (misshapen, r"other shapes layer1\.0\.conv1\.weight \(2, 2, 3, 3\) instead of \("),
        (infinite, r"not finite \(layer1\.0\.bn1\.weight\)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str, tmp_path: Path
) -> None:
    torch.save(change(state_of()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=said):
        read_pretrained(Backbone(f"timm:{SMALL}", (64, 64)), str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    "source", ["timm:test_resnet", "timm:test_vit", "timm:test_convnext", "resnet18"]
)
def test_a_file_of_another_model_is_refused(source: str, tmp_path: Path) -> None:
    torch.save(state_of("test_byobnet"), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"are of another network.* Give a \.safetensors or"):
        read_pretrained(Backbone(source, (64, 64)), str(tmp_path / "weights.pth"))


def test_what_is_no_file_of_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = Backbone(f"timm:{SMALL}", (64, 64))
    whole = tmp_path / "whole.pth"
    torch.save(state_of(), whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:50_000])
    attack = tmp_path / "attack.pth"
    torch.save({"weight": Attack()}, attack)
    number = tmp_path / "number.pth"
    torch.save(3, number)
    for file, said in (
        (tmp_path / "absent.pth", "There is no weights file"),
        (cut, "damaged or cannot be read"),
        (attack, "asks to run code"),
        (number, "should hold named tensors, found a int"),
    ):
        with pytest.raises(UserError, match=said):
            read_pretrained(backbone, str(file))
    assert "code ran" not in capsys.readouterr().out


def test_backbones_that_take_no_such_file_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"VGG begins from a weights file by method\.init=somp"):
        read_pretrained(Backbone("vgg16", (64, 64)), "weights.pth")
    with pytest.raises(UserError, match=r"is thinner\. Leave model\.width empty"):
        read_pretrained(Backbone("resnet18", (64, 64), 8), "weights.pth")
    with pytest.raises(UserError, match=r"model\.backbone=timm:resnet18"):
        read_pretrained(Backbone("resnet18", (64, 64)), "hf-hub:timm/resnet18.a1_in1k")


def test_weights_that_cannot_be_fetched_are_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to huggingface.co")

    monkeypatch.setattr("timm.models.load_state_dict_from_hf", fail)
    backbone = Backbone(f"timm:{SMALL}", (64, 64))
    with pytest.raises(
        UserError, match=r"cannot be fetched \(no route to huggingface\.co\)\. Fetch"
    ):
        read_pretrained(backbone, "hf-hub:someone/weights")
