"""Backbones of three sources fit the heads, wrong ones are told at once, weights are taken."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from cspine_kit.core.config import load_config, parse_config, read_config
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.errors import ArtifactError, ConfigError, DataError
from cspine_kit.vision.check import check_config
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.nets import backbone
from cspine_kit.vision.nets.backbone import check_backbone, create_backbone, torchvision_names
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import load_model, save_model, start_from, take_weights
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.vertebra import VertebraTask

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def named(tiny, name, **changes):
    return tiny.model_copy(update={"backbone": name, "in_chans": 5, "size_px": 64, **changes})


@pytest.mark.parametrize(
    "name", ["basic_cnn", "squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5", "googlenet"]
)
def test_backbones_that_timm_has_not_give_features_of_any_number_of_channels(tiny, name):
    config = named(tiny, name)
    check_backbone(config, "model")
    model = SliceModel(config, SlicesTask.heads, pretrained=False).eval()
    stack = torch.randint(0, 256, (2, 1, 5, 64, 64), dtype=torch.uint8)
    out = model(stack)
    assert {n: tuple(v.shape) for n, v in out.items()} == {"visible": (2, 7), "fracture": (2, 7)}
    assert not torch.equal(out["visible"][0], out["visible"][1])
    assert not torch.equal(out["visible"], model(stack.roll(1, dims=2))["visible"])


@pytest.mark.slow
def test_every_classifier_of_torchvision_is_built_or_refused_with_a_reason(tiny):
    names = torchvision_names()
    assert {"alexnet", "googlenet", "swin_t"} <= set(names) and "resnet50" not in names
    refused = {}
    for name in names:
        try:
            check_backbone(named(tiny, name, size_px=256), "model")
        except ConfigError as error:
            refused[name] = str(error)
    assert set(refused) == {name for name in names if name.startswith(("vit_", "maxvit"))}
    assert all("cannot take 5 x 256 x 256 px" in text for text in refused.values())
    check_backbone(named(tiny, "vit_b_16", size_px=224), "model")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnetv9_s", "model.backbone: 'efficientnetv9_s' is none of timm's"),
        ("tf_efficientnetv2_s.in21k_ft_in1", "did you mean 'tf_efficientnetv2_s.in21k_ft_in1k'"),
        ("tf_efficientnetv2s", "did you mean 'tf_efficientnetv2_s'"),
        ("alexnett", "did you mean 'alexnet'"),
        ("basiccnn", "did you mean 'basic_cnn'"),
        ("hf-hub:someone/something", "is none of timm's"),
        ("../weights", "is none of timm's"),
        ("vit_tiny_patch16_224", "cannot take 5 x 64 x 64 px"),
    ],
)
def test_a_wrong_backbone_is_told_with_the_nearest(tiny, name, said):
    with pytest.raises(ConfigError) as error:
        check_backbone(named(tiny, name), "model")
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["basic_cnn", "efficientnet_b8"])
def test_pretrained_weights_that_do_not_exist_are_told(tiny, name):
    """The second is an architecture of timm whose weights nobody published."""
    with pytest.raises(ConfigError, match=f"no pretrained weights of '{name}'.* set model.pretr"):
        check_backbone(named(tiny, name, pretrained=True), "model")
    check_backbone(named(tiny, name, pretrained=False), "model")


def test_a_whole_config_is_checked(config, tmp_path):
    check_config(config)
    member = config.model.model_copy(update={"backbone": "resnett50"})
    wrong = config.model_copy(update={"members": {"a": member}})
    with pytest.raises(ConfigError, match=r"members\.a\.backbone.*did you mean 'resnet50'"):
        check_config(wrong)
    lost = config.vertebra.model_copy(update={"weights": tmp_path / "no.safetensors"})
    with pytest.raises(ConfigError, match=r"vertebra\.weights: .*no\.safetensors is not there"):
        check_config(config.model_copy(update={"vertebra": lost}))


def test_weights_of_another_backbone_are_told_before_any_work(tiny, tmp_path):
    save_model(SliceModel(tiny, SlicesTask.heads, pretrained=False), tmp_path)
    config = load_config(CONFIGS / "demo.yaml")
    own = {"weights": tmp_path / WEIGHTS_FILE, "backbone": "tiny_cnn"}
    vertebra = config.vertebra.model_copy(update=own)
    with pytest.raises(ConfigError, match=r"vertebra\.weights: .* no tensor fits tiny_cnn"):
        check_config(config.model_copy(update={"vertebra": vertebra}))


def test_pretrained_weights_that_cannot_be_had_are_an_error_with_a_way_out(tiny, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(backbone.timm, "create_model", offline)
    with pytest.raises(DataError, match=r"test_resnet cannot be loaded: no network; name a \.safe"):
        create_backbone(tiny, pretrained=True)


def test_a_torchvision_stem_sees_all_channels_as_it_saw_three(monkeypatch, tiny):
    """Five alike channels give what three alike channels gave."""
    torch.manual_seed(0)
    original = torchvision.models.get_model("mnasnet0_5").eval()
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: original)
    gray = torch.rand(1, 1, 64, 64)
    three = original.layers(gray.expand(-1, 3, -1, -1)).mean(dim=(2, 3))
    made, width = create_backbone(named(tiny, "mnasnet0_5"), pretrained=False)
    five = made.eval()(gray.expand(-1, 5, -1, -1))
    assert width == five.shape[1] == 1280
    assert torch.allclose(three, five, atol=1e-5)


# ---- weights to start from -----------------------------------------------------------------------


def test_weights_of_the_kit_and_of_a_bare_backbone_are_taken(tiny, tmp_path):
    torch.manual_seed(0)
    save_model(SliceModel(tiny, VertebraTask.heads, pretrained=False), tmp_path)
    source = load_model(tmp_path)
    bare = tmp_path / "bare.safetensors"
    save_file({k: v.contiguous() for k, v in source.backbone.state_dict().items()}, bare)
    for file, also in ((tmp_path / WEIGHTS_FILE, {"heads.visible.weight"}), (bare, set())):
        model = SliceModel(tiny, SlicesTask.heads, pretrained=False)
        told = take_weights(model, file)
        state, known = model.state_dict(), source.state_dict()
        same = {name for name in state if name in known and torch.equal(state[name], known[name])}
        assert {n for n in state if n.startswith("backbone.")} | also <= same
        assert "heads.fracture.weight" not in same
        assert f"of {len(state)} tensors from {file}; not " in told and "heads.fracture" in told


def test_a_stem_for_other_channels_is_fitted(tiny, tmp_path):
    narrow, wide = (tiny.model_copy(update={"in_chans": count}) for count in (3, 5))
    save_model(SliceModel(narrow, VertebraTask.heads, pretrained=False), tmp_path)
    source = load_model(tmp_path)
    model = SliceModel(wide, SlicesTask.heads, pretrained=False)
    take_weights(model, tmp_path / WEIGHTS_FILE)
    name = next(n for n, v in source.state_dict().items() if v.ndim == 4)
    old, new = source.state_dict()[name], model.state_dict()[name]
    assert torch.allclose(new[:, :3] * 5 / 3, old, atol=1e-6)
    assert torch.allclose(new[:, 3:], new[:, :2])


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_an_encoder_that_drew_vertebrae_starts_a_member(config, tiny, tmp_path, backbone):
    drawing = config.segment.model_copy(update={"backbone": backbone, "pretrained": False})
    unet = build_net(drawing, task_of(drawing).outputs, pretrained=False)
    save_model(unet, tmp_path / "unet")
    own = tiny.model_copy(update={"backbone": backbone, "in_chans": drawing.in_chans})
    model = build_net(own, task_of(own).outputs, pretrained=False)
    start_from(model, (tmp_path / "unet",))
    encoder = {n.replace("_", "."): v for n, v in unet.state_dict().items() if v.ndim == 4}
    mine = {n.replace("_", "."): v for n, v in model.state_dict().items() if v.ndim == 4}
    shared = encoder.keys() & mine.keys()
    assert len(shared) == sum(name.startswith("backbone.") for name in mine)
    for name in shared:
        assert torch.allclose(mine[name], encoder[name], atol=1e-2), name


def test_a_start_that_cannot_fit_is_refused():
    path = CONFIGS / "rsna2022.yaml"
    raw = read_config(path)
    config = parse_config(raw, path)
    assert config.starts_from("effnetv2s") == "unet" and config.starts_from("r3d_block") is None

    def parsed(start):
        changes = {"members.convnext_level.warm_start": start, "vertebra.rounds": 2}
        return parse_config(apply_changes(raw, changes), path)

    assert parsed(start=True).starts_from("convnext_level") == "vertebra_round_2"
    with pytest.raises(ConfigError, match=r"convnext_level\.warm_start: .* there are .*'unet'"):
        parsed("net")
    with pytest.raises(ConfigError, match="unet has the backbone tf_efficientnetv2_s"):
        parsed("unet")


def test_only_nets_of_the_same_backbone_are_started_from(tiny, tmp_path):
    other = tiny.model_copy(update={"backbone": "test_efficientnet"})
    folders = []
    for name, config in (("a", tiny), ("b", other)):
        save_model(SliceModel(config, VertebraTask.heads, pretrained=False), tmp_path / name)
        folders.append(tmp_path / name)
    model = SliceModel(tiny, SlicesTask.heads, pretrained=False)
    told = start_from(model, tuple(folders))
    assert told[0].endswith(", heads.any_fracture.bias") or "heads.fracture" in told[0]
    assert told[1] == f"nothing from {tmp_path / 'b'}: its backbone is test_efficientnet"
    with pytest.raises(ArtifactError, match="missing"):
        start_from(model, (tmp_path / "c",))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x80\x04N."])
def test_weights_that_are_no_safetensors_are_an_error(tiny, tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    model = SliceModel(tiny, SlicesTask.heads, pretrained=False)
    with pytest.raises(ArtifactError, match=r"x\.safetensors cannot be read as safetensors"):
        take_weights(model, tmp_path / "x.safetensors")


def test_weights_of_another_network_are_an_error(tiny, tmp_path):
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    model = SliceModel(tiny, SlicesTask.heads, pretrained=False)
    with pytest.raises(
        ArtifactError, match=r"no tensor fits test_resnet; it holds .*layer\.weight"
    ):
        take_weights(model, tmp_path / "x.safetensors")


def test_a_network_of_the_kits_own_backbone_comes_back(tiny, tmp_path):
    config = named(tiny, "basic_cnn")
    model = SliceModel(config, SlicesTask.heads, pretrained=False).eval()
    save_model(model, tmp_path, "key")
    loaded = load_model(tmp_path)
    assert loaded.config == config
    assert all(
        torch.equal(loaded.state_dict()[n], v)
        for n, v in load_file(tmp_path / WEIGHTS_FILE).items()
    )
