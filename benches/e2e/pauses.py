"""How long writes pause when the writer is killed, is frozen, or hands over: the longest time without a commit.

Each fault has a cluster of its own, since a writer that was killed does not come back by itself. pgbench writes with
8 clients all the while and logs each commit; a client that was told an error it could not repeat would end, and with
it the measurement.
"""

import os
import pathlib
import re
import signal
import statistics
import subprocess
import time

import place as places
import processes
import servers
import systems as all_systems

CLIENTS = 8
# Before the fault, and behind it.
WARM_UP_S = 3
SECONDS = 10
PROMOTIONS = 4


class Subject(all_systems.Synapsedb):
    """A cluster for one fault."""

    copies = False

    def __init__(self, place, number):
        super().__init__(place)
        self.key = f"pause{number}"

    def writer(self):
        name = servers.psql(self.place, self.port, "select node_name from cluster_nodes where is_writer")
        return next(node for node in self.nodes if node.name == name)


def family(pid):
    """A server's process and its children, the server first."""
    found = [pid]
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def signal_all(node, number):
    for pid in family(node.process.pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def kill(system):
    node = system.writer()
    signal_all(node, signal.SIGKILL)
    node.process.wait(10)


def freeze(system):
    signal_all(system.writer(), signal.SIGSTOP)


def promote(system):
    """Another node becomes the writer."""
    writer = system.writer()
    other = next(node for node in system.nodes if node is not writer)
    config = system.folder / "proxy.toml"
    secret = {"SYNAPSEDB_BENCH_PASSWORD": system.place.password}
    command = [places.synapsedb_program(), "promote", other.name, "--config", config]
    processes.run(command, timeout=30, environment=secret)


def pause(system, act, clients=CLIENTS, seconds=SECONDS):
    """The longest time between two commits from shortly before `act` on, in milliseconds."""
    place = system.place
    folder = place.make(f"{system.key}-log-{time.monotonic_ns()}")
    command = [place.program("pgbench"), "-n", "-b", "simple-update", "-T", seconds, "-c", clients]
    command += ["-j", min(clients, 2), "--max-tries=50", "-l", "--log-prefix", folder / "log"]
    command += ["-h", "127.0.0.1", "-p", system.port, "-U", places.USER, places.DATABASE]
    load = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, **place.environment()},
    )
    try:
        time.sleep(WARM_UP_S)
        began = time.time()
        act(system)
        said = load.communicate(timeout=seconds + 60)[0]
    finally:
        if load.poll() is None:
            load.kill()
            load.communicate()
    if load.returncode != 0:
        errors = [line for line in said.splitlines() if "error" in line.lower()]
        raise processes.Failed(f"pgbench: {(errors or [said.strip()])[0]}")
    failed = re.search(r"number of failed transactions: (\d+)", said)
    if failed and int(failed[1]) > 0:
        raise processes.Failed(f"pgbench: {failed[1]} transactions failed")
    commits = []
    for log in folder.iterdir():
        for line in log.read_text().splitlines():
            parts = line.split()
            commits.append(float(parts[4]) + float(parts[5]) / 1e6)
    commits.sort()
    gaps = [after - before for before, after in zip(commits, commits[1:]) if after > began - 0.05]
    if not gaps:
        raise processes.Failed("nobody committed after the fault")
    return max(gaps) * 1000


def measure(place, template, rounds, say):
    """A line of Markdown for each fault, and the figures by fault."""
    found = {"kill": [], "freeze": [], "promote, 8 clients": [], "promote, 1 client": []}
    number = 0
    for _ in range(rounds):
        for fault, act in (("kill", kill), ("freeze", freeze), ("promote", promote)):
            number += 1
            system = Subject(place, number)
            try:
                system.start(template)
                if fault == "promote":
                    for clients in (CLIENTS, 1):
                        key = f"promote, {clients} client{'s' if clients > 1 else ''}"
                        for _ in range(PROMOTIONS):
                            found[key].append(pause(system, promote, clients, WARM_UP_S + 3))
                else:
                    found[fault].append(pause(system, act))
            finally:
                for node in system.nodes:
                    if node.process is not None and node.process.poll() is None:
                        signal_all(node, signal.SIGCONT)
                system.stop()
        say("pauses so far (ms): " + "; ".join(f"{key} {_list(values)}" for key, values in found.items()))
    return found


def table(found):
    """The figures as Markdown."""
    lines = ["Pause of writes, ms (median, worst):", ""]
    for key, values in found.items():
        if values:
            lines.append(f"- {key}: {statistics.median(values):.0f}, {max(values):.0f} ({len(values)} times)")
    return "\n".join(lines)


def _list(values):
    return ", ".join(f"{value:.0f}" for value in values)
