"""The systems that are compared: each starts its servers, says where clients connect, and stops everything.

`prepare` puts a system into the same state before each run; `settle` waits after a run until all its copies
have everything, so that no system's work falls into the next one's time, and returns the seconds it took.
"""

import json
import re
import signal
import time
import urllib.request

import place as places
import processes
import servers
from servers import Server

CATCH_UP_PATIENCE_S = 120


class LeftOut(Exception):
    """The system can't run here; the text says why."""


class System:
    """What all have in common. `port` is where clients connect; `nodes` are its servers."""

    key = ""
    label = ""
    copies = False

    def __init__(self, place):
        self.place = place
        self.nodes = []
        self.process = None
        self.port = None

    def start(self, template):
        raise NotImplementedError

    def prepare(self):
        """Clears away what the last run left in the two tables that bloat."""
        for node in self.nodes:
            node.sql("vacuum pgbench_branches, pgbench_tellers")

    def settle(self):
        """Waits until all copies have everything; the seconds it took."""
        return 0.0

    def empty(self, table):
        """Empties a table as a client."""
        servers.psql(self.place, self.port, f"truncate {table}")

    def cannot(self, case):
        """Why a case can't be run on this system, or None."""
        return "it has no such setting" if case.options else None

    def reads(self):
        """How many reads each node has answered so far, where that is told."""
        return {}

    def stop(self):
        if self.process is not None:
            processes.stop(self.process, signal.SIGINT, patience=5)
            self.process = None
        for node in self.nodes:
            node.stop()

    def _servers(self, template, count, settings=None):
        for number in range(1, count + 1):
            name = self.key if count == 1 else f"{self.key}{number}"
            node = Server(self.place, name, settings)
            node.copy_from(template)
            self.nodes.append(node)
            node.start()
        for node in self.nodes:
            servers.settle_pages(node)

    def _proxy(self, command, folder, who, patience=30, environment=None):
        """Starts the program in front and waits until a query comes through."""
        log = folder / "log"
        self.process = processes.start(command, log, who=who, folder=folder, environment=environment)

        def ready():
            try:
                return servers.psql(self.place, self.port, "select 1", timeout=10) == "1"
            except processes.Failed:
                return False

        try:
            processes.until(f"starting {self.label}", ready, patience, every=0.2, process=self.process)
        except processes.Failed as error:
            last = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise processes.Failed("\n  ".join([str(error), *last])) from None


class Bare(System):
    """One server and nothing else."""

    key = "bare"
    label = "one bare server"

    def start(self, template):
        self._servers(template, 1)
        self.port = self.nodes[0].port


class Bouncer(System):
    """PgBouncer, transaction pooling, before a server that another system owns."""

    key = "pgbouncer"
    label = "PgBouncer"

    def __init__(self, place, behind):
        super().__init__(place)
        self.behind = behind
        self.version = (0, 0)

    def start(self, template):
        self.front(self.behind.nodes[0].port)

    def prepare(self):
        self.behind.prepare()

    def cannot(self, case):
        return bouncer_cannot(case, self.version)

    def front(self, server_port):
        """Starts PgBouncer before the server on that port."""
        program = places.package_program("pgbouncer", "pgbouncer")
        if program is None:
            raise LeftOut("PgBouncer is not installed (Debian package pgbouncer)")
        said = processes.run([program, "--version"], timeout=10)
        numbers = re.search(r"(\d+)\.(\d+)", said)
        self.version = (int(numbers[1]), int(numbers[2]))
        place = self.place
        folder = place.make(f"{self.key}-front")
        self.port = place.port()
        place.write(folder / "users", f'"{places.USER}" "{place.password}"\n')
        lines = [
            "[databases]",
            f"{places.DATABASE} = host=127.0.0.1 port={server_port}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = scram-sha-256",
            f"auth_file = {folder / 'users'}",
            "pool_mode = transaction",
            "default_pool_size = 40",
            "max_client_conn = 200",
            "ignore_startup_parameters = extra_float_digits,options",
            "log_connections = 0",
            "log_disconnections = 0",
        ]
        if self.version >= (1, 21):
            lines.append("max_prepared_statements = 200")
        place.write(folder / "pgbouncer.ini", "\n".join(lines) + "\n")
        self._proxy([program, folder / "pgbouncer.ini"], folder, place.who)


def bouncer_cannot(case, version):
    """Why PgBouncer can't run a case, or None."""
    if case.options:
        return "it has no such setting"
    if case.prepared and version < (1, 21):
        return "PgBouncer {}.{} has no prepared statements in transaction pooling".format(*version)
    return None


class Synapsedb(System):
    """Three servers with the proxy under test."""

    key = "synapsedb"
    label = "SynapseDB, 3 nodes"
    copies = True

    def __init__(self, place):
        super().__init__(place)
        self.readers = None

    def start(self, template):
        self._servers(template, 3, {"wal_level": "logical"})
        self.folder = self.place.folder / f"{self.key}-front"
        self.folder.mkdir(mode=0o700)
        self.port, self.only_reads, self.http = (self.place.port() for _ in range(3))
        self.front("all")

    def cannot(self, case):
        return None

    def prepare(self):
        self.front("all")
        self.clear()

    def clear(self):
        """What every system does before a run, whichever configuration the proxy has."""
        super().prepare()

    def front(self, readers):
        """Sees to it that the proxy runs and has reads answered by these nodes ("all" or "writer")."""
        if self.readers == readers:
            return
        if self.process is not None:
            processes.stop(self.process, signal.SIGINT, patience=5)
            self.process = None
        self.readers = None
        lines = [
            "[listen]",
            f'read_write = "127.0.0.1:{self.port}"',
            f'read_only = "127.0.0.1:{self.only_reads}"',
            f'http = "127.0.0.1:{self.http}"',
            "[admin]",
            f'user = "{places.USER}"',
            f'database = "{places.DATABASE}"',
            'password_env = "SYNAPSEDB_BENCH_PASSWORD"',
            "[pool]",
            "max_connections = 40",
            "[reads]",
            f'nodes = "{readers}"',
        ]
        for node in self.nodes:
            lines += ["[[node]]", f'name = "{node.name}"', 'host = "127.0.0.1"', f"port = {node.port}"]
        config = self.folder / "proxy.toml"
        config.write_text("\n".join(lines) + "\n")
        program = places.synapsedb_program()
        secret = {"SYNAPSEDB_BENCH_PASSWORD": self.place.password}
        # At first contact all rows of all nodes are compared.
        self._proxy([program, "serve", "--config", config], self.folder, None, patience=120, environment=secret)
        in_sync = "select count(*) from cluster_nodes where status = 'in_sync'"
        processes.until(
            "joining of SynapseDB's nodes",
            lambda: servers.psql(self.place, self.port, in_sync) == str(len(self.nodes)),
            CATCH_UP_PATIENCE_S,
        )
        self.readers = readers

    def settle(self):
        """Until both followers have applied up to where the writer's log is now."""
        began = time.monotonic()
        writer = self.nodes[0]
        place = writer.sql("select pg_current_wal_lsn()")
        flushed = (
            "select coalesce(bool_and(confirmed_flush_lsn >= '{}'), true) from pg_replication_slots where active"
        ).format(place)
        processes.until(
            "catching up of SynapseDB's followers",
            lambda: writer.sql(flushed) == "t",
            CATCH_UP_PATIENCE_S,
        )
        return time.monotonic() - began

    def reads(self):
        """How many reads each node has answered so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found = re.findall(r'^synapsedb_reads_total{node="([^"]+)"} (\d+)', text, re.MULTILINE)
        return {node: int(count) for node, count in found}

    def status(self):
        """What /status says, where there is such a page; for the report of a failure."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/status", timeout=5) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None


class SynapsedbAtWriter(System):
    """The same servers and proxy with `reads.nodes = "writer"`: one server answers, as behind PgBouncer."""

    key = "synapsedb_writer"
    label = "SynapseDB, reads at the writer"

    def __init__(self, place, same):
        super().__init__(place)
        self.same = same

    def start(self, template):
        self.port = self.same.port

    def prepare(self):
        self.same.front("writer")
        self.same.clear()

    def settle(self):
        return self.same.settle()

    def cannot(self, case):
        return None if case.reads_only else "all but single reads is as with reads from all nodes"


class Physical(System):
    """PgBouncer before a primary that waits for any one of two physical standbys."""

    key = "physical"
    label = "PgBouncer + physical quorum"
    commit = "on"

    def __init__(self, place):
        super().__init__(place)
        self.bouncer = None

    def start(self, template):
        self._servers(template, 1)
        primary = self.nodes[0]
        for name in ("s1", "s2"):
            standby = Server(self.place, f"{self.key}-{name}")
            standby.base_backup(primary, name)
            self.nodes.append(standby)
            standby.start()
        primary.sql("alter system set synchronous_standby_names = 'ANY 1 (s1, s2)'")
        primary.sql("select pg_reload_conf()")
        quorum = "select count(*) = 2 from pg_stat_replication where sync_state = 'quorum'"
        processes.until("joining of the standbys", lambda: primary.sql(quorum) == "t", 30)
        self.bouncer = Bouncer(self.place, self)
        self.bouncer.key = self.key
        self.bouncer.front(primary.port)
        self.port = self.bouncer.port

    def prepare(self):
        self.nodes[0].sql("vacuum pgbench_branches, pgbench_tellers")
        self.set_commit(self.commit)

    def set_commit(self, value):
        """How far a standby must be before a commit answers, for all sessions."""
        primary = self.nodes[0]
        primary.sql(f"alter system set synchronous_commit = {value}")
        primary.sql("select pg_reload_conf()")
        primary.sql("select pg_sleep(0.2)")

    def settle(self):
        began = time.monotonic()
        primary = self.nodes[0]
        place = primary.sql("select pg_current_wal_lsn()")
        replayed = f"select count(*) = 2 from pg_stat_replication where replay_lsn >= '{place}'"
        processes.until("catching up of the standbys", lambda: primary.sql(replayed) == "t", CATCH_UP_PATIENCE_S)
        return time.monotonic() - began

    def cannot(self, case):
        if case.reads_only:
            return "reads take the same way as through PgBouncer"
        return bouncer_cannot(case, self.bouncer.version)

    def stop(self):
        if self.bouncer is not None:
            self.bouncer.stop()
        super().stop()


class PhysicalWrite(System):
    """The same servers with synchronous_commit = remote_write: a standby has it in memory, not on disk."""

    key = "remote_write"
    label = "the same, remote_write"

    def __init__(self, place, same):
        super().__init__(place)
        self.same = same

    def start(self, template):
        self.port = self.same.port

    def prepare(self):
        self.same.prepare()
        self.same.set_commit("remote_write")

    def settle(self):
        return self.same.settle()

    def cannot(self, case):
        return self.same.cannot(case)


class Pgpool(System):
    """pgpool-II in native replication mode: each statement is sent to three servers."""

    key = "pgpool"
    label = "pgpool-II replication"
    copies = True

    def start(self, template):
        program = places.package_program("pgpool", "pgpool2")
        if program is None:
            raise LeftOut("pgpool-II is not installed (Debian package pgpool2)")
        self._servers(template, 3)
        place = self.place
        folder = place.make("pgpool-front")
        self.port, manager = place.port(), place.port()
        settings = {
            "backend_clustering_mode": "native_replication",
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "pcp_listen_addresses": "127.0.0.1",
            "pcp_port": manager,
            "socket_dir": folder,
            "unix_socket_directories": folder,
            "pcp_socket_dir": folder,
            "pid_file_name": folder / "pid",
            "logdir": folder,
            "work_dir": folder,
            "num_init_children": 60,
            "max_pool": 1,
            "enable_pool_hba": "on",
            "pool_passwd": folder / "pool_passwd",
            "load_balance_mode": "on",
            "memory_cache_enabled": "off",
            "health_check_period": 0,
            "sr_check_period": 0,
            "use_watchdog": "off",
            "log_min_messages": "error",
        }
        for number, node in enumerate(self.nodes):
            settings[f"backend_hostname{number}"] = "127.0.0.1"
            settings[f"backend_port{number}"] = node.port
            settings[f"backend_weight{number}"] = 1
            settings[f"backend_data_directory{number}"] = node.data
            settings[f"backend_flag{number}"] = "ALLOW_TO_FAILOVER"
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        place.write(folder / "pgpool.conf", text)
        place.write(folder / "pool_hba.conf", "host all all 127.0.0.1/32 scram-sha-256\n")
        place.write(folder / "pool_passwd", f"{places.USER}:TEXT{place.password}\n")
        place.write(folder / "pcp.conf", "")
        files = ["-f", folder / "pgpool.conf", "-F", folder / "pcp.conf", "-a", folder / "pool_hba.conf"]
        self._proxy([program, "-n", "-D", *files], folder, place.who)


def chosen(place, only):
    """The systems in the order in which they run, those that others stand on included."""
    bare, ours, physical = Bare(place), Synapsedb(place), Physical(place)
    every = [
        bare,
        Bouncer(place, bare),
        ours,
        SynapsedbAtWriter(place, ours),
        physical,
        PhysicalWrite(place, physical),
        Pgpool(place),
    ]
    if not only:
        return every
    unknown = set(only) - {system.key for system in every}
    if unknown:
        keys = ", ".join(system.key for system in every)
        raise processes.Failed(f"--only: {', '.join(sorted(unknown))}? There are {keys}")
    needs = {"pgbouncer": "bare", "synapsedb_writer": "synapsedb", "remote_write": "physical"}
    wanted = set(only) | {needs[key] for key in only if key in needs}
    return [system for system in every if system.key in wanted]
