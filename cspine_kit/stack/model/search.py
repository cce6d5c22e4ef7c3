"""Optional search of booster settings, inside one outer fold and inside a time budget.

In: the level task of an outer fold. Out: a config with other booster settings. Example::

    from cspine_kit.stack.model.head import Design

    x, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60).astype(float)
    one, free = np.zeros(60, dtype=int), np.zeros(3, dtype=bool)
    design = Design(x, x.astype(np.float32), one, 1, (False,) * 3, np.ones(3), free)
    task = Task(design, y, np.ones(60), np.arange(60) % 4)
    brief = config.stack.model_copy(update={"search_minutes": 0.02})
    search(task, brief, seed=1)                # for so many minutes, Optuna's TPE

It sees the inner folds only, like everything else that is chosen. A wall clock decides how many
trials fit, so two runs may differ: it is off by default (`search_minutes: 0`).
"""

import logging

from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import ConfigError
from cspine_kit.stack.model.head import Task, inner_loss

log = logging.getLogger(__name__)


def search(task: Task, config: StackConfig, *, seed: int) -> StackConfig:
    """The best settings found for a level task in `config.search_minutes` minutes.

    The configured settings are the first trial, so the result is never worse on the inner folds.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "stack.search_minutes needs Optuna; pip install optuna, or set it to 0"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: "optuna.Trial") -> float:
        settings = {
            "num_leaves": trial.suggest_int("num_leaves", 2, 31),
            "min_rows": trial.suggest_int("min_rows", 5, 100, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.1, 1.0),
            "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.1, log=True),
            "l2": trial.suggest_float("l2", 0.1, 50.0, log=True),
            "extra_trees": trial.suggest_categorical("extra_trees", [False, True]),
        }
        return inner_loss(task, config.model_copy(update=settings), seed=seed)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    names = ("num_leaves", "min_rows", "feature_fraction", "bagging_fraction", "learning_rate")
    study.enqueue_trial({name: getattr(config, name) for name in (*names, "l2", "extra_trees")})
    study.optimize(objective, timeout=config.search_minutes * 60.0)
    log.info("search: %d trials, inner loss %.5f", len(study.trials), study.best_value)
    return config.model_copy(update=study.best_params)
