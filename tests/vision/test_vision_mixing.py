"""Pairs that exchange a rectangle: images, maps and labels stay in step."""

from pathlib import Path

import pytest
import torch

from cspine_kit.core.config import parse_config, read_config
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.inputs.mixing import cut_pairs, mix_pairs
from cspine_kit.vision.oof.chain import _settings

PATH = Path(__file__).resolve().parents[2] / "configs" / "hard-gpu.yaml"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(n, side=16):
    """Units of one grey each, whose maps and labels are that grey too."""
    grey = torch.arange(float(n)).reshape(n, 1, 1, 1, 1)
    stack = grey.expand(n, 2, 3, side, side).clone()
    visible = torch.eye(n, 7)
    return {
        **{"stack": stack, "mask": stack[:, :, 0].clone(), "mask_weight": torch.ones(n)},
        **{"lesions": stack[:, :, 1].clone(), "lesions_weight": torch.ones(n, 2)},
        **{"visible": visible, "facts": visible.clone(), "level": torch.arange(n)},
    }


def test_a_rectangle_of_all_patches_is_exchanged_and_labels_follow_its_area():
    batch = batch_of(6)
    cut = cut_pairs(batch, 1.0, seeded(), 0, 6)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        other = cut["stack"][a] == b
        area = float(other.float().mean())
        assert 0 < area <= 0.55 and bool(((cut["stack"][a] == a) | other).all())
        assert torch.equal(other, other[:1, :1].expand_as(other)), "all patches of a unit alike"
        rows, cols = (other[0, 0].any(dim=k).sum() for k in (1, 0))
        assert int(rows * cols) == int(other[0, 0].sum()), "a rectangle"
        assert torch.equal(cut["stack"][b] == a, other)
        for name in ("mask", "lesions"):
            assert torch.equal(cut[name][a], cut["stack"][a][:, 0])
        for name in ("visible", "facts"):
            assert float(cut[name][a, b]) == pytest.approx(area, abs=1e-6)
            assert float(cut[name][a, a]) == pytest.approx(1 - area, abs=1e-6)
    assert torch.equal(cut["level"], batch["level"])
    still = cut_pairs(batch, 0.0, seeded(), 0, 6)
    assert all(torch.equal(still[name].float(), batch[name].float()) for name in batch)
    # A part of the batch is cut as the whole is, but for a pair that is torn.
    part = cut_pairs({name: value[2:5] for name, value in batch.items()}, 1.0, seeded(), 2, 6)
    assert torch.equal(part["stack"][:2], cut["stack"][2:4])
    assert torch.equal(part["stack"][2], batch["stack"][4])


@pytest.mark.parametrize("mix", [mix_pairs, cut_pairs])
def test_maps_are_known_where_both_are(mix):
    batch = batch_of(4)
    batch["mask_weight"] = torch.tensor([1.0, 0.0, 0.5, 1.0])
    batch["lesions_weight"] = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    found = mix(batch, 1.0, seeded(), 0, 4)
    assert found["mask_weight"].tolist() == [0.0, 0.0, 0.5, 0.5]
    assert found["lesions_weight"].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    alone = mix(batch, 0.0, seeded(), 0, 4)
    assert torch.equal(alone["lesions_weight"], batch["lesions_weight"])


def test_the_config_chooses_one_way(config):
    plain, cut = (config.model.model_copy(update={"cutmix": share}) for share in (0.0, 1.0))
    stack = torch.randint(0, 255, (8, 1, 3, 16, 16), dtype=torch.uint8)
    one, two = (augment_batch({"stack": stack}, own, seeded(3))["stack"] for own in (plain, cut))
    changed = (one != two).any(dim=2).float().mean(dim=(1, 2, 3))
    assert (changed < 0.6).all() and (changed > 0).sum() >= 4
    pairs = one.reshape(4, 2, *one.shape[1:]).sum(1)
    assert torch.allclose(pairs, two.reshape(4, 2, *one.shape[1:]).sum(1))
    assert "mixing" in _settings(cut) and "mixing" not in _settings(plain)


def test_both_ways_at_once_are_refused():
    raw = read_config(PATH)
    assert parse_config(apply_changes(raw, {"members.*.cutmix": 0.5}), PATH).members["seven"].cutmix
    with pytest.raises(ConfigError, match="mixup and cutmix: a pair is mixed in one way"):
        parse_config(apply_changes(raw, {"members.*.cutmix": 0.5, "members.*.mixup": 0.5}), PATH)
    with pytest.raises(ConfigError, match="does nothing for kind 'boxes'"):
        parse_config(apply_changes(raw, {"members.boxed.cutmix": 0.5}), PATH)
