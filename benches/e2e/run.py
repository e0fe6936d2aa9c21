"""SynapseDB beside what people run today: the same work, in turn, on one machine.

Starts all systems, runs each case on each of them in turn for several rounds, compares SynapseDB's copies row
by row, prints medians, ratios and goals. Everything is stopped at the end and on Ctrl-C. `--help` lists the rest.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import time

sys.dont_write_bytecode = True

import cases as all_cases
import pauses
import place as places
import processes
import report as reports
import servers
import systems as all_systems


def arguments():
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, under 3 minutes; too short to judge by")
    parser.add_argument("--seconds", type=int, help="length of one run (8)")
    parser.add_argument("--rounds", type=int, help="how often each is run (3)")
    parser.add_argument("--only", action="append", default=[], metavar="SYSTEM", help="only these systems; may be repeated")
    parser.add_argument("--case", action="append", default=[], metavar="CASE", help="only these cases; may be repeated")
    parser.add_argument("--scale", type=int, default=10, help="pgbench's scale (10)")
    parser.add_argument("--rows", type=int, help="rows of a COPY (1000000)")
    parser.add_argument("--folder", type=pathlib.Path, help="where the temporary folder is made (/var/tmp)")
    parser.add_argument("--json", type=pathlib.Path, help="where the figures go (target/bench/e2e.json)")
    given = parser.parse_args()
    given.seconds = given.seconds or (2 if given.quick else 8)
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.rows = given.rows or (200_000 if given.quick else 1_000_000)
    given.json = given.json or places.ROOT / "target/bench/e2e.json"
    # Not /tmp: where that is memory, fsync costs nothing and the comparison is void.
    given.folder = given.folder or pathlib.Path("/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir())
    return given


def say(text):
    print(text, flush=True)


def chosen_cases(keys):
    known = {case.key: case for case in all_cases.CASES}
    unknown = [key for key in keys if key not in known and key != "pauses"]
    if unknown:
        raise processes.Failed(f"--case: {', '.join(unknown)}? There are {', '.join(known)}, pauses")
    return [case for case in all_cases.CASES if not keys or case.key in keys]


def start(place, systems, scale):
    """Starts all systems; those that can't be had are said and left out. Gives those that run, and what they began with."""
    began = time.monotonic()
    say(f"Making pgbench's tables, scale {scale} ...")
    template = servers.template(place, scale)
    running, left_out = [], []
    for system in systems:
        if any(getattr(system, name, None) in left_out for name in ("same", "behind")):
            left_out.append(system)
            continue
        say(f"Starting {system.label} ...")
        try:
            running.append(system)
            system.start(template)
        except all_systems.LeftOut as why:
            say(f"LEFT OUT: {system.label}: {why}")
            running.remove(system)
            left_out.append(system)
            system.stop()
    say(f"All started after {time.monotonic() - began:.0f} s.")
    return running, template


def measure(given, systems, cases, rows, report):
    """All rounds. A system that fails a case is said to have failed it, and the others go on. Each round begins with
    another system, since what one leaves behind (dirty pages, a checkpoint) the next one may have to bear."""
    for number in range(1, given.rounds + 1):
        for case in cases:
            line = []
            first = (number - 1) * max(1, len(systems) // given.rounds) % len(systems)
            for system in systems[first:] + systems[:first]:
                why = system.cannot(case)
                if why is not None:
                    report.cannot(case, system, why)
                    continue
                try:
                    system.prepare()
                    before, began = system.reads(), time.monotonic()
                    rate = all_cases.run(case, system, given.seconds, rows)
                    report.add(case, system, rate)
                    report.read(case, system, before, system.reads(), time.monotonic() - began)
                    line.append(f"{system.key} {rate:,.0f}")
                    behind = system.settle()
                    if behind > 2:
                        report.note(f"{system.label}, {case.label}: its last copy had everything up to {behind:.0f} s later")
                except processes.Failed as error:
                    line.append(f"{system.key} FAILED")
                    say(f"  {system.label}, {case.label}: {error}")
                    report.failed(case, system, str(error))
            say(f"round {number} of {given.rounds}, {case.label}: {', '.join(line)}")


def compare(systems, report):
    """Whether the copies are equal: an error where SynapseDB's are not, a remark elsewhere."""
    equal = True
    for system in systems:
        if not system.copies:
            continue
        hashes = [servers.tables_hash(node) for node in system.nodes]
        if len(set(hashes)) == 1:
            say(f"{system.label}: all rows of all {len(hashes)} copies are equal.")
            continue
        report.note(f"{system.label}: the copies DIFFER after the runs")
        for node, found in zip(system.nodes, hashes):
            say(f"{node.name} (table|rows|hash):\n{found}")
        equal = equal and system.key != "synapsedb"
    return equal


def pause(given, place, running, template):
    """How long writes pause, on servers of its own while all others are stopped. A short round has no time for it."""
    wanted = "pauses" in given.case or not given.case and not given.quick
    if not wanted or "synapsedb" not in (system.key for system in running):
        return {}
    for system in reversed(running):
        system.stop()
    return pauses.measure(place, template, given.rounds, say)


def bench(given):
    """The exit code."""
    cases = chosen_cases(given.case)
    all_systems.chosen(None, given.only)
    for process in ("TERM", "HUP"):
        signal.signal(getattr(signal, f"SIG{process}"), lambda *_: sys.exit(143))
    place = places.Place(given.folder)
    systems = all_systems.chosen(place, given.only)
    try:
        machine = reports.machine(place)
        say(machine)
        load = os.getloadavg()[0]
        if load > os.cpu_count():
            say(f"This machine is busy (load {load:.1f}): the figures will be worth little.")
        running, template = start(place, systems, given.scale)
        rows = (all_cases.make_rows(place, given.rows), given.rows)
        report = reports.Report(running, cases)
        for system in systems:
            if system not in running:
                report.note(f"{system.label}: LEFT OUT, it can't be had here")
        try:
            measure(given, running, cases, rows, report)
            equal = compare(running, report)
            faults = pause(given, place, running, template)
        except KeyboardInterrupt:
            say("\nStopped early; so far:")
            say(report.table())
            raise
        say("\n" + machine)
        settings = {"seconds": given.seconds, "rounds": given.rounds, "scale": given.scale, "rows": given.rows}
        say(", ".join(f"{name} {value}" for name, value in settings.items()) + "\n")
        say(report.table())
        if faults:
            say("\n" + pauses.table(faults))
        report.write(given.json, machine, settings, faults)
        say(f"\nEvery figure is in {given.json}.")
        if not equal:
            say("ERROR: SynapseDB's copies differ.")
        broken = [case for key, case, _ in report.failures if key in reports.OURS]
        if broken:
            say(f"ERROR: SynapseDB failed: {', '.join(sorted(set(broken)))}.")
        return 1 if broken or not equal else 0
    finally:
        # A second Ctrl-C must not leave servers behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for system in reversed(systems):
            system.stop()
        place.remove()


def main():
    try:
        code = bench(arguments())
    except processes.Failed as error:
        sys.exit(f"make bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)


if __name__ == "__main__":
    main()
