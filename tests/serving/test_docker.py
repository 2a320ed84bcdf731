"""What stands in docker/ fits the server: metrics of the dashboard, options of the entry point."""

import json
import re
from pathlib import Path

import eenet.serving.metrics
from eenet.cli import main

FOLDER = Path(__file__).parents[2] / "docker"


def test_the_dashboard_asks_for_metrics_that_there_are():
    source = Path(eenet.serving.metrics.__file__).read_text(encoding="utf-8")
    dashboard = json.loads((FOLDER / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    asked = {name for panel in dashboard["panels"] for one in panel["targets"] for name in metrics_in(one["expr"])}
    assert len(asked) > 15
    for name in asked:
        plain = re.sub("_(total|bucket|sum|count)$", "", name)
        assert f'"{plain}"' in source or f'"eenet_{plain}"' in source, name


def metrics_in(query: str) -> list[str]:
    return re.findall(r"eenet_(\w+)", query)


def test_the_entry_point_is_a_command_of_eenet(capsys):
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    program, command, *words = json.loads(entry)
    assert program == "eenet" and main([command, "--help", "--all"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words if word.startswith("--"))
