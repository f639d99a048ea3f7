# SPDX-License-Identifier: 0BSD
"""A small project, built once, and copies of it to break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bdcc.approx.model import QuantizedModel
from bdcc.codegen.plan import DeploymentPlan
from bdcc.host.build import build
from codegen.nets import alexnet_like, quantized, write_project


@pytest.fixture(scope="package")
def model() -> QuantizedModel:
    """Several bit widths, a dense layer left float, tensors that are handed on as codes."""
    return quantized(alexnet_like(), bases=[3, 2, 4, 0, 1], bits=[4, 3, 2, 8, 8])


def write_reported(model: QuantizedModel, project: Path) -> DeploymentPlan:
    """A project as `bdcc compile` leaves it, the report cut down to what is read here."""
    plan = write_project(model, project)
    assert plan.preprocess is not None
    report = json.dumps({"preprocess": plan.preprocess.as_json()})
    (project / "report.json").write_text(report, "utf-8")
    return plan


@pytest.fixture(scope="package")
def write() -> Callable[[QuantizedModel, Path], DeploymentPlan]:
    return write_reported


@pytest.fixture(scope="package")
def emitted(
    model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DeploymentPlan]:
    project = tmp_path_factory.mktemp("host") / "net"
    plan = write_reported(model, project)
    build(project, make_args=["CFLAGS=-O1"])  # make does not build again for other flags
    return project, plan


@pytest.fixture(scope="package")
def net(emitted: tuple[Path, DeploymentPlan]) -> Path:
    """The project, built; not to be changed."""
    return emitted[0]


@pytest.fixture(scope="package")
def plan(emitted: tuple[Path, DeploymentPlan]) -> DeploymentPlan:
    return emitted[1]


@pytest.fixture
def copy(net: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(net, tmp_path / "net", symlinks=True)
