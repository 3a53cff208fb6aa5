"""Reports of runs: one stored document per run, and the tables made of such documents."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.report import machine, put
from tests.chaos.campaign import SECOND, Campaign, Outcome
from tests.chaos.disaster_campaign import FORMS
from tests.chaos.disaster_campaign import Outcome as DisasterOutcome
from tests.chaos.faults import KILL

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results")
PAGE = ROOT / "docs" / "FAULTS.md"
MARK = "chaos"
DISASTERS = RESULTS / "disasters"
DISASTERS_MARK = "disasters"
Document = Mapping[str, Any]


def command(campaign: Campaign) -> str:
    """Return what plans the same run again."""
    words = [
        "make chaos",
        f"KILLS={campaign.faults}",
        f"SUBMISSIONS={campaign.submissions}",
        f"NETWORKS={campaign.networks}",
        f"TARGETS={','.join(campaign.targets)}",
        *([f"ACTIONS={','.join(campaign.actions)}"] if tuple(campaign.actions) != (KILL,) else []),
        *([f"SECOND={','.join(campaign.second)}"] if tuple(campaign.second) != SECOND else []),
        f"SEED={campaign.seed}",
    ]
    return " ".join(words)


def as_document(outcome: Outcome) -> Document:
    """Return what is kept of a run."""
    findings, damage, answers = outcome.findings, outcome.damage, outcome.answers
    return {
        "command": command(outcome.campaign),
        "run_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seconds": round(outcome.seconds),
        "sent": outcome.campaign.submissions,
        "networks": outcome.campaign.networks,
        "answers": dict(sorted(answers.statuses.items())),
        "ids answered 2xx": len(answers.taken),
        "unanswered without a key": answers.unanswered,
        "submissions in the log": findings.submissions,
        "accepted": findings.accepted,
        "lost": len(findings.lost),
        "wrong verdicts": findings.wrong_verdicts,
        "networks over the limit": findings.over_the_limit,
        "stored wrongly": findings.stored_wrongly,
        "delivered again": findings.delivered_again,
        "delivered again at most": outcome.again_max,
        "verdicts written again": findings.repeated_outputs,
        "faults": {f"{action} {target}": count for (action, target), count in sorted(damage.done.items())},
        "seconds to ready": {
            part: {"median": round(statistics.median(took), 1), "longest": round(max(took), 1)}
            for part, took in sorted(damage.seconds_to_ready.items())
        },
        "broken": findings.broken,
    }


def table(documents: Sequence[Document]) -> str:
    """Return runs as a Markdown table, one a row."""
    heads = (
        "run",
        "faults",
        "forms",
        "ids answered 2xx",
        "accepted",
        "lost",
        "wrong verdicts",
        "over the limit",
        "stored wrongly",
        "sent again (may be)",
        "s to ready again, median (longest)",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for document in documents:
        ready = (f"{part} {s['median']:g} ({s['longest']:g})" for part, s in document["seconds to ready"].items())
        cells = (
            f"`{document['command']}`, {document['run_at'][:10]}, {document['seconds']} s",
            ", ".join(f"{count} {what}" for what, count in document["faults"].items()),
            f"{document['sent']:,} of {document['networks']} networks",
            f"{document['ids answered 2xx']:,}",
            f"{document['accepted']:,}",
            str(document["lost"]),
            str(document["wrong verdicts"]),
            str(document["networks over the limit"]),
            str(document["stored wrongly"]),
            f"{document['delivered again']} ({document['delivered again at most']})",
            ", ".join(ready) or "none",
        )
        lines.append("| " + " | ".join(cells) + " |")
    kept_not = [
        f"\nNot kept in `{document['command']}`: {line}." for document in documents for line in document["broken"]
    ]
    return "\n".join([*lines, *kept_not]) + "\n"


def load() -> list[Document]:
    """Return the runs that are kept, in the order of their names."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]


def keep(outcome: Outcome) -> None:
    """Keep a run in place of the last one with the same targets and actions, and put all into the page."""
    RESULTS.mkdir(exist_ok=True)
    name = "-".join([*sorted(outcome.campaign.actions), *sorted(outcome.campaign.targets)])
    text = json.dumps(as_document(outcome), indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    put(PAGE, MARK, table(load()))


def disaster_command(seed: int, many: int) -> str:
    """Return what plans the same disasters again."""
    return f"make chaos ACTIONS=disaster KILLS={many} SEED={seed}"


def of_disasters(made_by: str, outcomes: Sequence[DisasterOutcome], seconds: float) -> Document:
    """Return what is kept of a run of disasters."""
    return {
        "command": made_by,
        "run_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seconds": round(seconds),
        "disasters": [
            {
                "disaster": outcome.disaster,
                "timing": str(outcome.timing),
                "seconds": round(outcome.seconds),
                "forms": FORMS,
                "ids answered 2xx": outcome.findings.submissions,
                "lost": len(outcome.findings.lost),
                "delivered again": outcome.findings.delivered_again,
                "commands": outcome.cures,
                "broken": outcome.findings.broken,
            }
            for outcome in outcomes
        ],
    }


def disaster_table(document: Document) -> str:
    """Return a run of disasters as a Markdown table, one disaster a row, in every timing of it."""
    lines = [
        f"`{document['command']}`, {document['run_at'][:10]}, {document['seconds']} s:\n",
        "| disaster | forms answered 2xx after it | lost | sent again | command that `status` named, by timing |",
        "|---|---|---|---|---|",
    ]
    names = dict.fromkeys(one["disaster"] for one in document["disasters"])
    for name in names:
        of_it = sorted((d for d in document["disasters"] if d["disaster"] == name), key=lambda one: str(one["timing"]))
        ways = "; ".join(f"{one['timing']}: {_way(one['commands'])}" for one in of_it)
        numbers = (sum(one[what] for one in of_it) for what in ("ids answered 2xx", "lost", "delivered again"))
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {ways} |")
    lines += [
        f"\nNot kept after {one['disaster']} ({one['timing']}): {line}."
        for one in document["disasters"]
        for line in one["broken"]
    ]
    return "\n".join(lines) + "\n"


def _way(commands: Sequence[str]) -> str:
    return ", ".join(f"`nigredo {command}`" for command in commands) or "none needed"


def load_disasters() -> list[Document]:
    """Return the run of disasters that is kept, if there is one."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(DISASTERS.glob("*.json"))]


def keep_disasters(document: Document) -> None:
    """Keep a run of disasters in place of the last one, and put it into the page."""
    DISASTERS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    (DISASTERS / "all.json").write_text(text, encoding="utf-8")
    put(PAGE, DISASTERS_MARK, disaster_table(document))
