"""From rates to a table: medians, ratios of SynapseDB to the others, goals, and the machine they hold for."""

import json
import os
import pathlib
import platform
import re
import statistics
import subprocess

# SynapseDB as it is by default, and in the other ways in which it is measured.
OURS = {"synapsedb": "", "synapsedb_writer": ", reads at the writer"}
AGAINST = ["bare", "pgbouncer", "physical", "remote_write", "pgpool"]


class Report:
    """Rates by case and system, and what could not be measured."""

    def __init__(self, systems, cases):
        self.systems = systems
        self.cases = cases
        self.rates = {case.key: {system.key: [] for system in systems} for case in cases}
        self.by_node = {}
        self.why_not = {}
        self.failures = []
        self._notes = []

    def add(self, case, system, rate):
        self.rates[case.key][system.key].append(rate)

    def read(self, case, system, before, after, seconds):
        """How many reads each node has answered before and after a run."""
        for node, count in after.items():
            if count > before.get(node, 0) + seconds:
                rates = self.by_node.setdefault((case.label, system.label), {})
                rates.setdefault(node, []).append((count - before.get(node, 0)) / seconds)

    def cannot(self, case, system, why):
        """Remembers why a figure is missing."""
        found = self.why_not.setdefault((system.label, why), [])
        if case.label not in found:
            found.append(case.label)

    def failed(self, case, system, why):
        """A run that should have succeeded."""
        self.failures.append((system.key, case.key, why))
        self.cannot(case, system, f"FAILED: {why}")

    def note(self, text):
        if text not in self._notes:
            self._notes.append(text)

    @property
    def notes(self):
        """Why figures are missing, and whatever else was noticed."""
        why_not = [f"{label}: {why} ({'; '.join(cases)})" for (label, why), cases in self.why_not.items()]
        return why_not + self._notes

    def median(self, case, key):
        """The middle of a system's rates; None where there is none."""
        found = self.rates[case.key].get(key)
        return statistics.median(found) if found else None

    def ratio(self, case, key, ours="synapsedb"):
        """The median of SynapseDB's rates by another system's in the same round: the machine's mood, which may change
        by half within minutes, is then in both. Where a round is missing, SynapseDB's median by the other's."""
        ours, theirs = (self.rates[case.key].get(k) or [] for k in (ours, key))
        if len(ours) == len(theirs):
            ratios = [our / their for our, their in zip(ours, theirs) if their]
            return statistics.median(ratios) if ratios else None
        return statistics.median(ours) / statistics.median(theirs) if ours and theirs else None

    def goals(self):
        """(case, ours, against, goal, reached ratio or None) of every goal."""
        for case in self.cases:
            for ours, key, goal in case.goals:
                yield case, ours, key, goal, self.ratio(case, key, ours)

    def table(self):
        """The whole report as Markdown."""
        labels = {system.key: system.label for system in self.systems}
        rows = [["", *labels.values()]]
        for case in self.cases:
            cells = [_rate(self.median(case, key)) for key in labels]
            rows.append([f"{case.label} ({case.unit})", *cells])
        text = ["Medians:", "", *_markdown(rows)]
        others = [key for key in AGAINST if key in labels]
        if "synapsedb" in labels and others:
            rows = [["SynapseDB by", *(labels[key] for key in others)]]
            for case in self.cases:
                for ours, way in OURS.items():
                    if ours == "synapsedb" or self.rates[case.key].get(ours):
                        rows.append([case.label + way, *(self._cell(case, key, ours) for key in others)])
            text += ["", "Ratios (medians of the rounds' ratios), with the goal where there is one:", "", *_markdown(rows)]
        if self.by_node:
            text += ["", "Reads per second by node:", ""]
            for (case, system), nodes in self.by_node.items():
                rates = ", ".join(f"{node} {statistics.median(found):,.0f}" for node, found in nodes.items())
                text.append(f"- {system}, {case}: {rates}")
        notes = self.notes
        if notes:
            text += ["", *(f"- {note}" for note in notes)]
        return "\n".join(text)

    def _cell(self, case, key, ours):
        ratio = self.ratio(case, key, ours)
        goal = next((least for one, other, least in case.goals if (one, other) == (ours, key)), None)
        if ratio is None:
            return "-"
        if goal is None:
            return f"{ratio:.2f}"
        return f"{ratio:.2f} (goal {goal:.2f}: {'reached' if ratio >= goal else 'not reached'})"

    def write(self, path, machine, settings, pauses):
        """The same as JSON, with every single rate."""
        path.parent.mkdir(parents=True, exist_ok=True)
        cases = {}
        for case in self.cases:
            keys = [system.key for system in self.systems]
            cases[case.key] = {
                "label": case.label,
                "unit": case.unit,
                "rates": self.rates[case.key],
                "medians": {key: self.median(case, key) for key in keys},
                "ratios": {
                    ours: {key: self.ratio(case, key, ours) for key in keys if key not in OURS}
                    for ours in OURS
                    if ours in keys
                },
            }
        goals = [
            {
                "case": case.key,
                "system": ours,
                "against": key,
                "goal": goal,
                "ratio": ratio,
                "reached": bool(ratio and ratio >= goal),
            }
            for case, ours, key, goal, ratio in self.goals()
        ]
        by_node = [{"case": case, "system": system, "rates": rates} for (case, system), rates in self.by_node.items()]
        report = {"machine": machine, "settings": settings, "cases": cases, "goals": goals, "reads_by_node": by_node}
        report |= {"pauses_ms": pauses, "notes": self.notes}
        path.write_text(json.dumps(report, indent=2) + "\n")


def _rate(value):
    return "-" if value is None else f"{value:,.0f}"


def _markdown(rows):
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]

    def line(cells):
        first, *rest = zip(cells, widths)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(rows[0]), "| " + " | ".join(rule) + " |", *(line(row) for row in rows[1:])]


def machine(place):
    """What the figures hold for, in one line."""
    processor = platform.machine()
    try:
        found = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = found[1].strip() if found else processor
    except OSError:
        pass
    said = subprocess.run([place.program("postgres"), "--version"], capture_output=True, text=True, timeout=10)
    version = re.search(r"[\d.]+", said.stdout)
    where = subprocess.run(
        ["stat", "-f", "-c", "%T", place.folder], capture_output=True, text=True, timeout=10
    ).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({processor}), {memory:.0f} GB, {platform.system()} {platform.release()}, "
        f"{where or 'unknown file system'}, PostgreSQL {version[0] if version else '?'}; everything on this one machine"
    )
