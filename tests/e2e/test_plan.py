"""A plan from a checkpoint: quantized, compared, certified against a running cloud, and served as it was written."""

import json

import httpx
import pytest

from edgewise.quantize.joint import read_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_checkpoint_becomes_a_gateway_by_one_plan(digits, tmp_path, edgewise, start_service):
    costs = tmp_path / "edgewise.toml"
    costs.write_text("[cost]\nprice_per_call = 0.001\n[cost.regions.eu]\nrtt_ms = 20.0\n")
    cloud = start_service("cloud", "serve", digits.cloud, "--port", 0)
    done = edgewise(
        "plan", digits.edge, "--cloud", cloud.url, "--data", digits.certify, "--tuning", digits.tuning,
        "--recipes", "int8_dynamic", "--alpha", 0.03, "--config", costs, "--out", tmp_path / "plan", "--json",
    )  # fmt: skip
    plan = read_plan(tmp_path / "plan" / "plan.json")
    assert json.loads(done.stdout)["certificate_id"] == plan.certificate_id
    assert {option.recipe for option in plan.options} == {"fp32", "int8_dynamic"}
    assert plan.choice.certified.local_share > 0.2
    assert plan.choice.price.total < plan.cloud_only.total == pytest.approx(0.001)
    for page in ("report.html", "run/report.html"):
        assert plan.headline in (tmp_path / "plan" / page).read_text()
    gateway = start_service("edge", "serve", tmp_path / "plan" / "bundle", "--cloud", cloud.url, "--port", 0)
    assert httpx.get(f"{gateway.url}/readyz").status_code == 200
    assert any(f"{100 * plan.choice.certified.local_share:.4g} %" in line for line in gateway.stderr)
