"""What this machine can do is told before any work; what training sets is set back."""

import pytest
import torch

from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.training import settings
from cspine_kit.vision.training.optimizer import average_of, optimizer_of
from cspine_kit.vision.training.settings import check_training, determinism, precision


def asked(config, **changes):
    return config.training.model_copy(update=changes)


@pytest.fixture(name="gpu")
def _gpu(monkeypatch):
    def claim(major, minor):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")

    return claim


@pytest.mark.parametrize(
    ("capability", "chosen"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_is_bf16_where_it_is_native(config, gpu, capability, chosen):
    gpu(*capability)
    assert precision(asked(config, precision="auto")) == chosen
    assert precision(asked(config, precision="fp16")) == "fp16"
    assert precision(asked(config, precision="no")) == "no"


def test_auto_is_full_precision_on_a_cpu(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision(asked(config, precision="auto")) == "no"
    with pytest.raises(ConfigError, match="fp16 needs a GPU; did you mean 'auto'"):
        precision(asked(config, precision="fp16"))


def test_bf16_that_is_not_native_is_refused(config, gpu):
    gpu(7, 5)
    with pytest.raises(ConfigError, match="Tesla T4 has no bf16 of its own"):
        precision(asked(config, precision="bf16"))


def test_a_tracker_that_is_absent_or_unknown_is_told(config, monkeypatch):
    monkeypatch.setattr(settings, "get_available_trackers", lambda: ["tensorboard"])
    check_training(asked(config, log_with="tensorboard"))
    with pytest.raises(ConfigError, match="wandb is not installed: pip install wandb"):
        check_training(asked(config, log_with="wandb"))
    with pytest.raises(ConfigError, match=r"'tensorbord' is no tracker.*\['tensorboard'\]"):
        check_training(asked(config, log_with="tensorbord"))


def test_determinism_is_set_back_after_an_error():
    with pytest.raises(ValueError, match="x"), determinism(on=True):
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        raise ValueError("x")
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with determinism(on=False):
            assert torch.backends.cudnn.benchmark
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_norms_and_biases_do_not_decay_and_heads_have_their_own_rate(tiny):
    config = tiny.model_copy(update={"lr": 0.01, "head_lr": 0.1, "weight_decay": 0.3})
    model = SliceModel(config, SlicesTask.heads, pretrained=False)
    optimizer, schedule = optimizer_of(model, config, steps=10)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0), name
            assert group["max_lr"] == (0.1 if name.startswith("heads.") else 0.01), name
    assert seen == set(names.values())
    assert schedule.total_steps == 11


def test_the_average_reaches_over_a_twentieth_of_the_steps_at_most(tiny):
    model = SliceModel(tiny, SlicesTask.heads, pretrained=False)
    config = tiny.model_copy(update={"ema_decay": 0.99})
    decays = [average_of(model, config, steps).decay for steps in (3, 20, 200, 2000, 20000)]
    assert decays == pytest.approx([0, 0, 0.9, 0.99, 0.99])


def test_a_training_of_few_steps_has_a_schedule(tiny):
    """torch divides by zero where the rise is exactly one step."""
    config = tiny.model_copy(update={"warmup": 0.2})
    model = SliceModel(config, SlicesTask.heads, pretrained=False)
    for steps in range(1, 12):
        optimizer, schedule = optimizer_of(model, config, steps=steps)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert min(rates) > 0 and max(rates) <= config.lr * 1.0001, steps
