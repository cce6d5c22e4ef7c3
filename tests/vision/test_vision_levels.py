"""Members that judge vertebrae: where they look, what they learn, and the rows that they fill."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cspine_kit.core.anatomy import LEVELS, N_LEVELS, OVERALL, TARGETS
from cspine_kit.core.metric import metric
from cspine_kit.core.tables import FRACTURE_COLUMNS, MASK_COLUMNS, VERTEBRA_COLUMNS, check_table
from cspine_kit.data.levels import decode_visible
from cspine_kit.data.spine import UNSEEN
from cspine_kit.data.volumes.volume import Held
from cspine_kit.vision.inputs.augment import augment_batch, mirrored, mirrored_outputs
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import load_model, save_model
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.shown import BODY_MM
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.losses import batch_weights, loss_of

SMALL = {"backbone": "tiny_cnn", "in_chans": 3, "stack_step_mm": 2.0, "field_mm": 40.0}
SMALL |= {"size_px": 16, "slices_per_level": 3, "slice_step_mm": 4.0, "hidden": 8, "epochs": 1}
FAST = {"epochs": 20, "batch_size": 4, "lr": 0.01, "others_share": 0.5}
KINDS = ("levels", "study", "volume")
USUAL = {"volume": {"backbone": "tiny_3d"}}
SEQUENCES = ("gru", "attention")
PLANES = ("axial", "sagittal", "coronal")


@pytest.fixture(name="small")
def _small(config):
    """`small(kind, **changes)`: a network that looks at 3 stacks of a vertebra."""

    def make(kind, **changes):
        return getattr(config, kind).model_copy(update=SMALL | USUAL.get(kind, {}) | changes)

    return make


@pytest.fixture(scope="session", name="levels")
def _levels():
    """C1 to C7, 10 mm each, from 90 mm down, in the middle of `make_volume`'s."""
    top = 90.0 - 10.0 * np.arange(N_LEVELS)
    place = {"z_top_mm": top, "z_bottom_mm": top - 10, "center_z_mm": top - 5}
    return pd.DataFrame(
        {"level": LEVELS, "present": True, **place, "center_y_mm": 38.0, "center_x_mm": 38.0}
    )


def lesson(volume, broken=(), masked=True):
    """A study whose mask marks slice 5 to 9 as C1, 10 to 14 as C2, ... and its labels."""
    label = pd.Series({t: float(t in broken or (t == OVERALL and bool(broken))) for t in TARGETS})
    n = len(volume.z_mm)
    slices = pd.DataFrame({"z_mm": volume.z_mm})
    for k, column in enumerate(MASK_COLUMNS):
        slices[column] = ((np.arange(n) - 5) // 5 == k).astype(float) if masked else np.nan
    rows = pd.DataFrame({"at_mm": volume.z_mm})
    for k, column in enumerate(VERTEBRA_COLUMNS):
        rows[column] = np.where((np.arange(n) - 5) // 5 == k, 2.0, -2.0)
    return Lesson(slices, label, rows)


def learned(config, volumes, levels, broken):
    """A dataset of studies with targets."""
    task, views = task_of(config), []
    for volume, own in zip(volumes, broken, strict=True):
        view = task.view(volume, levels)
        view.targets = task.targets(view, lesson(volume, own))
        views.append(view)
    return StackDataset(views, config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plane", PLANES)
def test_stacks_are_spread_around_each_center(small, levels, make_volume, kind, plane):
    config = small(kind, plane=plane)
    view = task_of(config).view(make_volume(0), levels)
    assert len(view.patches) == 3 * N_LEVELS and view.plane == plane
    assert (len(view), view.per_unit) == ((1, 21) if kind == "study" else (7, 3))
    second = view.patches[3:6]
    if plane == "axial":
        assert [p.center_mm for p in second] == [(79.0, 38, 38), (75.0, 38, 38), (71.0, 38, 38)]
        assert second[0].offsets_mm == (2.0, 0.0, -2.0)
    else:
        assert [p.center_mm for p in second] == [(75.0, 38, 38)] * 3
        assert [p.offsets_mm[1] for p in second] == [4.0, 0.0, -4.0]
    drawn = view.drawn(len(view) - 1, config.windows)
    assert drawn.shape == (view.per_unit, 3, 16, 16)
    fewer = task_of(config).view(make_volume(0), levels, stride=2)
    assert len(fewer.patches) == 2 * N_LEVELS
    assert {p.offsets_mm for p in fewer.patches} | {p.center_mm for p in fewer.patches} <= {
        p.offsets_mm for p in view.patches
    } | {p.center_mm for p in view.patches}


def test_each_stack_knows_the_ends_of_its_vertebra(small, levels, make_volume):
    view = task_of(small("levels")).view(make_volume(0), levels)
    ends = levels[["z_top_mm", "z_bottom_mm"]].to_numpy().repeat(3, axis=0)
    assert [patch.own_mm for patch in view.patches] == [tuple(e) for e in ends.tolist()]


def test_a_mask_channel_moves_with_the_image_and_keeps_its_values(small, levels, make_volume):
    config = small("levels", windows=((-500.0, 1500.0), "spine"))
    loud = config.augment.model_copy(update={"brightness": 0.3, "noise": 0.3, "contrast": 0.5})
    still = loud.model_copy(update=dict.fromkeys(("rotate_deg", "shift_mm", "scale"), 0.0))
    config = config.model_copy(update={"augment": still.model_copy(update={"flip_x": 1.0})})
    view = task_of(config).view(make_volume(0), levels)
    stack = torch.from_numpy(view.drawn(3, config.windows))[None]
    assert stack.shape[2] == config.channels == 6 and stack[:, :, 1::2].max() == 255
    changed = augment_batch({"stack": stack}, config, torch.Generator().manual_seed(1))["stack"]
    mirrored = stack.flip(-1).float()
    assert torch.allclose(changed[:, :, 1::2], mirrored[:, :, 1::2], atol=1e-3)
    assert (changed[:, :, ::2] - mirrored[:, :, ::2]).abs().mean() > 10
    outputs = build_net(config, task_of(config).heads, pretrained=False)(stack)
    assert outputs["level"].shape == (1, 1)


def test_levels_in_any_order_are_seen_from_c1_down(small, levels, make_volume):
    task = task_of(small("levels"))
    usual, other = (task.view(make_volume(0), rows) for rows in (levels, levels[::-1]))
    assert usual.patches == other.patches


@pytest.mark.parametrize("kind", KINDS)
def test_a_vertebra_out_of_the_scan_teaches_nothing_and_is_as_sound_as_the_soundest(
    small, levels, make_volume, kind
):
    config, volume = small(kind, others_share=1.0), make_volume(0)
    task = task_of(config)
    away = levels.assign(present=levels["level"] != "C7")
    view = task.view(volume, away)
    view.targets = task.targets(view, lesson(volume, {"C7"}))
    assert view.patches[18:] == view.patches[15:18]
    assert view.targets["visible"].ravel()[18:].tolist() == [0, 0, 0]
    drawn = StackDataset([view], config).draw(np.random.default_rng(0))
    assert sorted(drawn) == ([0] if kind == "study" else list(range(6)))
    net = build_net(config, task.heads, pretrained=False).eval()
    said = predict({0: net}, volume, away, 8)[0]
    logits = said.scores["oof_levels"]["fracture"]
    assert logits[6] == logits[:6].min()
    assert said.require()["vertebra_C7"].max() <= UNSEEN


def test_what_an_axial_stack_shows_is_its_own_vertebra(small, levels, make_volume):
    volume = make_volume(0)
    task = task_of(small("levels"))
    view = task.view(volume, levels)
    known = task.targets(view, lesson(volume, {"C2"}))
    assert known["fracture"].ravel().tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert known["overall"].ravel().tolist() == [1] * 7
    # Its slices lie at 2 mm steps: stacks 4 mm from the center still show it.
    assert known["visible"].tolist() == [[1, 1, 1]] * 7
    blind = lesson(volume, masked=False)
    at_mm = blind.rows["at_mm"].to_numpy()
    shown = decode_visible(at_mm, blind.rows[list(VERTEBRA_COLUMNS)].to_numpy())
    guessed = task.targets(view, blind)["visible"]
    for k, stacks_mm in enumerate(view.at_mm.reshape(N_LEVELS, -1)):
        assert np.allclose(guessed[k], np.interp(-stacks_mm, -at_mm, shown[:, k]), atol=1e-6)


def test_what_a_standing_stack_shows_comes_from_the_mask_or_stays_unknown(
    small, levels, make_volume
):
    volume = make_volume(0)
    config = small("levels", plane="sagittal", slice_step_mm=20.0)
    task = task_of(config)
    view = task.view(volume, levels)
    assert np.isnan(task.targets(view, lesson(volume))["visible"]).tolist() == [[1, 0, 1]] * 7
    assert config.slice_step_mm > BODY_MM
    mask = np.zeros(volume.voxels.shape, np.uint8)
    mask[5:10, :, 20:45] = 1
    masked = replace(volume, mask=Held(mask))
    shown = task.targets(task.view(masked, levels), lesson(volume))["visible"]
    assert shown.tolist() == [[0, 1, 0]] + [[0, 0, 0]] * 6


@pytest.mark.parametrize(("kind", "units"), [("levels", 3 + 10), ("study", 2 + 1)])
def test_an_epoch_shows_all_fractured_units_and_a_share_of_the_others(
    small, levels, make_volume, kind, units
):
    config = small(kind, others_share=0.4 if kind == "levels" else 0.5)
    broken = [{"C1", "C5"}, {"C2"}, set(), set()]
    data = learned(config, [make_volume(k) for k in range(4)], levels, broken)
    drawn = [[data.rows[i] for i in data.draw(np.random.default_rng(seed))] for seed in (0, 1)]
    hurt = {(0, 0), (0, 4), (1, 1)} if kind == "levels" else {(0, 0), (1, 0)}
    for rows in drawn:
        assert hurt <= set(rows) and len(rows) == len(set(rows)) == units
    assert set(drawn[0]) != set(drawn[1]) or kind == "study"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plane", PLANES)
def test_pieces_of_a_batch_add_up_to_its_loss(small, levels, make_volume, kind, plane):
    torch.manual_seed(0)
    config = small(kind, plane=plane, drop_rate=0.0)
    data = learned(config, [make_volume(k) for k in range(3)], levels, [{"C3"}, set(), {"C7"}])
    samples = [data[i] for i in range(len(data))]
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    task = task_of(config)
    net = build_net(config, task.heads, pretrained=False).eval()
    weights = batch_weights(task, batch)
    whole = loss_of(task.losses(net(batch["stack"]), batch), weights)
    parts = 0.0
    for piece in (slice(0, 2), slice(2, None)):
        part = {name: value[piece] for name, value in batch.items()}
        parts += loss_of(task.losses(net(part["stack"]), part), weights)
    assert torch.isfinite(whole)
    assert float(parts.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    whole.backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None]
    assert not idle


@pytest.mark.parametrize("form", ["per_exam", "global"])
def test_the_study_loss_is_the_metric(small, levels, make_volume, form):
    config = small("study", form=form, overall="noisy_or")
    data = learned(config, [make_volume(k) for k in range(3)], levels, [{"C3"}, set(), {"C1"}])
    batch = {n: torch.stack([data[i][n] for i in range(3)]) for n in data[0]}
    task = task_of(config)
    outputs = task.blank(batch) | {"study": torch.randn(3, 8, generator=torch.manual_seed(0))}
    loss, weight = task.losses(outputs, batch)["study"]
    labels = torch.cat([batch["fracture"], batch["overall"]], dim=1).numpy()
    probs = torch.sigmoid(outputs["study"].double()).numpy()
    assert float(loss / weight) == pytest.approx(metric(labels, probs, form), rel=1e-5)


def test_a_new_study_head_says_the_seven_and_their_noisy_or(small):
    config = small("study")
    net = build_net(config, task_of(config).heads, pretrained=False).eval()
    said = net(torch.randint(0, 255, (2, 21, 3, 16, 16), dtype=torch.uint8))
    assert torch.allclose(said["study"][:, :7], said["level"], atol=1e-6)
    p = torch.sigmoid(said["level"].double())
    any_of = 1 - (1 - p).prod(dim=1)
    assert torch.allclose(torch.sigmoid(said["study"][:, 7].double()), any_of, atol=1e-5)


@pytest.mark.parametrize("how", [(k, p, s) for k in KINDS for p in PLANES for s in SEQUENCES])
def test_rows_fit_their_tables_and_come_back_from_disk(small, levels, make_volume, tmp_path, how):
    kind, plane, sequence = how
    config = small(kind, plane=plane, sequence=sequence)
    task, volume = task_of(config), make_volume(0)
    save_model(build_net(config, task.heads, pretrained=False), tmp_path)
    said = predict({k: load_model(tmp_path) for k in (0, 1)}, volume, levels, 8)
    common = {"member": "a", "study_uid": volume.study_uid, "model_fold": 0, "fold": 0}
    tables = {"oof_slices": said[0].require(), **said[0].scores}
    assert set(tables) == {"oof_slices", *task.tables}
    for name, rows in tables.items():
        check_table(rows.assign(**common), name)
    again = said[1].require()
    assert np.allclose(again[list(FRACTURE_COLUMNS)], tables["oof_slices"][list(FRACTURE_COLUMNS)])
    assert np.allclose(said[1].scores["oof_levels"]["fracture"], tables["oof_levels"]["fracture"])


def test_axial_rows_say_of_each_slice_what_the_stacks_around_it_say(small, levels, make_volume):
    config = small("levels")
    task, volume = task_of(config), make_volume(0)
    view = task.view(volume, levels)
    broken = np.arange(21.0).reshape(7, 3)
    outputs = {"slice": broken, "visible": np.full((7, 3), 3.0), "level": np.zeros((7, 1))}
    rows = task.rows(view, outputs)
    assert rows["position"].tolist() == sorted(set(view.indices.tolist()))
    at = rows.set_index("at_mm")
    # Slices lie at even mm: each stands between two stacks of its vertebra, or at one.
    assert at.loc[76.0, "fracture_C2"] == pytest.approx(4 - 0.25)
    assert at.loc[76.0, "vertebra_C2"] == 3.0
    assert at.loc[76.0, ["vertebra_C1", "vertebra_C4"]].tolist() == [UNSEEN, UNSEEN]


@pytest.mark.parametrize("plane", PLANES)
def test_a_mirrored_unit_is_the_patient_mirrored(small, levels, make_volume, plane):
    """Drawing the mirrored volume is the same as mirroring what is drawn."""
    config = small("study", plane=plane, windows=((-500, 1500), (0, 300)), slice_step_mm=4.8)
    config = config.model_copy(update={"field_mm": 38.4, "stack_step_mm": 2.4})
    volume = make_volume(0)
    middle = levels.assign(center_y_mm=volume.middle_mm[0], center_x_mm=volume.middle_mm[1])
    other = replace(volume, voxels=Held(volume.voxels.array[:, :, ::-1]))
    one, two = (
        torch.from_numpy(task_of(config).view(v, middle).drawn(0, config.windows))[None]
        for v in (volume, other)
    )
    turned = mirrored(one, config)
    if plane == "sagittal":  # the middle of 64 columns lies between two planes
        assert turned.shape == two.shape and torch.equal(mirrored(turned, config), one)
        assert torch.equal(turned[0, 0, :2], one[0, 2, -2:])
    else:
        assert torch.equal(turned, two)
    outputs = {name: torch.arange(21.0)[None] for name in ("slice", "visible", "level")}
    back = mirrored_outputs(outputs, config)["slice"][0, :6].tolist()
    assert back == ([2, 1, 0, 5, 4, 3] if plane == "sagittal" else [0, 1, 2, 3, 4, 5])


def test_augmentation_mirrors_sagittal_units_by_their_planes(small, levels, make_volume):
    config = small("levels", plane="sagittal")
    still = dict.fromkeys(type(config.augment).model_fields, 0.0) | {"flip_x": 1.0}
    config = config.model_copy(update={"augment": config.augment.model_copy(update=still)})
    stack = torch.from_numpy(
        np.stack(
            [task_of(config).view(make_volume(0), levels).drawn(k, config.windows) for k in (0, 1)]
        )
    )
    changed = augment_batch({"stack": stack}, config, torch.Generator().manual_seed(0))["stack"]
    assert torch.allclose(changed, mirrored(stack, config).float(), atol=1e-3)


def test_a_bright_vertebra_is_learned(small, levels, make_volume, config, tmp_path):
    """C4 is broken where its slices are bright."""
    torch.set_num_threads(1)
    volumes, broken = [], []
    for seed in range(8):
        volume = make_volume(seed)
        if seed % 2:
            volume.voxels.array[20:25, 20:40, 20:40] = 250
        else:
            volume.voxels.array[20:25] = 30
        volumes.append(volume)
        broken.append({"C4"} if seed % 2 else set())
    hurt = np.array([[level in own for level in LEVELS] for own in broken])
    for kind in KINDS:
        own, folder = small(kind, **FAST), tmp_path / kind
        data = learned(own, volumes, levels, broken)
        training = config.training
        train_model(data, own, folder, key="k", training=training, seed=0, title="t", held=data)
        said = [predict({0: load_model(folder)}, v, levels, 64)[0] for v in volumes]
        logits = np.array([one.scores["oof_levels"]["fracture"] for one in said])
        assert logits[hurt].min() > logits[~hurt].max()
