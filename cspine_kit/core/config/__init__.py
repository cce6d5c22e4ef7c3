"""Typed configuration over YAML; `load` reads it, the other files hold its sections.

In: a YAML file. Out: a frozen `Config`. Example::

    config = load_config(Path("configs/demo.yaml"))
"""

from cspine_kit.core.config.competition import (
    USUAL_VARIETIES,
    CompetitionConfig,
    FoldsConfig,
    PhantomConfig,
    PseudoMasksConfig,
)
from cspine_kit.core.config.config import RESERVED, Config
from cspine_kit.core.config.load import (
    load_config,
    merge,
    parse_config,
    read_config,
    read_yaml,
    resolved_yaml,
)
from cspine_kit.core.config.machine import ExecutionConfig, TrainingConfig
from cspine_kit.core.config.members import (
    MEMBERS,
    BoxesConfig,
    ClassifierConfig,
    LevelsConfig,
    Member,
    MemberConfig,
    SlicesConfig,
    StudyConfig,
    VolumeConfig,
)
from cspine_kit.core.config.network import AugmentConfig, ModelConfig
from cspine_kit.core.config.networks import KINDS, Network, parse_network
from cspine_kit.core.config.rounds import round_name
from cspine_kit.core.config.section import Section
from cspine_kit.core.config.ship import BundleConfig, KernelConfig
from cspine_kit.core.config.stack import ExternalConfig, StackConfig
from cspine_kit.core.config.stage import SegmentConfig, StageConfig, StageMember, VertebraConfig
from cspine_kit.core.config.volumes import FineConfig, GridConfig, VolumesConfig

__all__ = [
    "KINDS",
    "MEMBERS",
    "RESERVED",
    "USUAL_VARIETIES",
    "AugmentConfig",
    "BoxesConfig",
    "BundleConfig",
    "ClassifierConfig",
    "CompetitionConfig",
    "Config",
    "ExecutionConfig",
    "ExternalConfig",
    "FineConfig",
    "FoldsConfig",
    "GridConfig",
    "KernelConfig",
    "LevelsConfig",
    "Member",
    "MemberConfig",
    "ModelConfig",
    "Network",
    "PhantomConfig",
    "PseudoMasksConfig",
    "Section",
    "SegmentConfig",
    "SlicesConfig",
    "StackConfig",
    "StageConfig",
    "StageMember",
    "StudyConfig",
    "TrainingConfig",
    "VertebraConfig",
    "VolumeConfig",
    "VolumesConfig",
    "load_config",
    "merge",
    "parse_config",
    "parse_network",
    "read_config",
    "read_yaml",
    "resolved_yaml",
    "round_name",
]
