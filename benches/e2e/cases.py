"""What is measured: pgbench's own scripts, and COPY of many rows. Each case gives one rate for one run."""

import dataclasses
import re

import place as places
import processes


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of work. `goals`: the least ratio of SynapseDB to another system, by both systems' keys."""

    key: str
    label: str
    script: str = ""
    clients: int = 1
    mode: str = "simple"
    goals: tuple = ()
    unit: str = "tps"
    # What the client's session is started with.
    options: str = ""

    @property
    def prepared(self):
        """Whether it uses named prepared statements of the protocol."""
        return self.mode == "prepared"

    @property
    def reads_only(self):
        """Whether it changes nothing."""
        return self.script == "select-only"


def _goal(against, least, ours="synapsedb"):
    return ours, against, least


# Of pgbench's own scripts, by weight.
MIXED = "select-only@9 simple-update@1"

CASES = [
    Case("tpcb-8", "TPC-B-like, 8 clients", "tpcb-like", 8, goals=(_goal("bare", 0.25), _goal("physical", 0.8))),
    Case("tpcb-32", "TPC-B-like, 32 clients", "tpcb-like", 32),
    Case("update-1", "simple update, 1 client", "simple-update", 1, goals=(_goal("bare", 0.4), _goal("physical", 0.8))),
    Case("update-8", "simple update, 8 clients", "simple-update", 8),
    # Like with like: PgBouncer has one server asked, and here three of them share the machine that one has to itself.
    Case(
        "select-8",
        "select only, 8 clients, simple",
        "select-only",
        8,
        goals=(_goal("pgbouncer", 1.0, ours="synapsedb_writer"),),
    ),
    Case("select-8-prepared", "select only, 8 clients, prepared", "select-only", 8, mode="prepared"),
    Case("mixed-8", "90 % reads, 10 % writes, 8 clients", MIXED, 8),
    # What it costs that a strict read waits until the writer shows what the follower showed.
    Case("mixed-8-session", "the same, session consistency", MIXED, 8, options="-c synapsedb.read_consistency=session"),
    Case("mixed-8-eventual", "the same, eventual consistency", MIXED, 8, options="-c synapsedb.read_consistency=eventual"),
    Case("copy", "COPY", goals=(_goal("bare", 0.3),), unit="rows/s"),
]


def make_rows(place, count):
    """The file that COPY loads: a key, a word that is not the same twice, a time."""
    path = place.folder / "rows"
    with open(path, "w", encoding="ascii") as out:
        for start in range(1, count + 1, 10000):
            end = min(start + 10000, count + 1)
            out.writelines(
                f"{n}\t{n * 2654435761 % 2**64:032x}\t2026-01-01 00:00:{n % 60:02d}+00\n" for n in range(start, end)
            )
    return path


def run(case, system, seconds, rows):
    """The rate of one run."""
    if case.script:
        return _pgbench(case, system, seconds)
    return _copy(system, rows)


def _pgbench(case, system, seconds):
    place = system.place
    command = [place.program("pgbench"), "-n", "-M", case.mode, "-T", seconds]
    for script in case.script.split():
        command += ["-b", script]
    command += ["-c", case.clients, "-j", min(case.clients, 2)]
    command += ["-h", "127.0.0.1", "-p", system.port, "-U", places.USER, places.DATABASE]
    said = processes.run(command, timeout=seconds + 60, environment={**place.environment(), "PGOPTIONS": case.options})
    failed = re.search(r"number of failed transactions: (\d+)", said)
    if failed and int(failed[1]) > 0:
        raise processes.Failed(f"pgbench: {failed[1]} transactions failed")
    rate = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    if not rate or float(rate[1]) == 0:
        raise processes.Failed("pgbench gave no rate")
    return float(rate[1])


def _copy(system, rows):
    path, count = rows
    place = system.place
    system.empty("bench_copy")
    command = [place.program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", system.port]
    command += ["-U", places.USER, "-d", places.DATABASE, "-c", "\\timing on", "-c", f"\\copy bench_copy from '{path}'"]
    said = processes.run(command, timeout=300, environment=place.environment())
    took = re.search(r"^Time: ([\d.]+) ms", said, re.MULTILINE)
    if not took:
        raise processes.Failed("psql gave no time")
    return count / (float(took[1]) / 1000)
