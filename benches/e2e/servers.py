"""PostgreSQL servers for the systems under test: all with the same settings, all with the same rows.

One template is made and filled once; every server starts from a copy of it (standbys from pg_basebackup).
Before the first measurement each is frozen by VACUUM, so that every page is in the log once since the last
checkpoint, and no checkpoint comes until the end: what is measured is the steady state, for all alike.
"""

import signal

import place as places
import processes

# For all servers alike. Durability is as PostgreSQL ships it: fsync and full_page_writes on.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "150",
    "shared_buffers": "256MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    # The harness vacuums between runs: no server disturbs the measurement of another.
    "autovacuum": "off",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


class Server:
    """One server on a port of its own."""

    def __init__(self, place, name, settings=None):
        self.place = place
        self.name = name
        self.port = place.port()
        self.folder = place.make(name)
        self.data = self.folder / "data"
        self.settings = {**SETTINGS, "wal_level": "replica", **(settings or {})}
        self.process = None

    def initialise(self):
        """An empty data directory with the superuser and the database."""
        secret = self.folder / "password"
        self.place.write(secret, self.place.password + "\n")
        self._command(
            ["initdb", "-D", self.data, "-U", places.USER, "--pwfile", secret, "--auth=scram-sha-256"]
            + ["--encoding=UTF8", "--locale=C.UTF-8"],
            timeout=120,
        )
        # pg_basebackup and the standbys log in by the same file.
        rules = ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"]
        self.place.write(self.data / "pg_hba.conf", "\n".join(rules) + "\n")

    def copy_from(self, template):
        """The data of a stopped server."""
        copy = ["cp", "-a", "--reflink=auto", template.data, self.data]
        processes.run(copy, timeout=300)

    def base_backup(self, primary, application):
        """A physical standby's data."""
        self._command(
            ["pg_basebackup", "-D", self.data, "-X", "stream", "-c", "fast", "-R"]
            + ["-d", f"host=127.0.0.1 port={primary.port} user={places.USER} application_name={application}"],
            timeout=300,
        )

    def start(self):
        """Starts it and waits until it answers."""
        lines = {**self.settings, "port": str(self.port), "unix_socket_directories": ""}
        text = "".join(f"{name} = '{value}'\n" for name, value in lines.items())
        self.place.write(self.data / "postgresql.conf", text)
        postgres = self.place.program("postgres")
        self.process = processes.start(
            [postgres, "-D", self.data],
            self.folder / "log",
            who=self.place.who,
            folder=self.folder,
            at_our_death=signal.SIGQUIT,
        )

        def ready():
            try:
                return self.sql("select 1", database="postgres") == "1"
            except processes.Failed:
                return False

        processes.until(f"starting {self.name}", ready, 60, every=0.1, process=self.process)

    def stop(self, immediately=True):
        """Stops it; its data is worth nothing unless it is the template."""
        if self.process is not None:
            processes.stop(self.process, signal.SIGQUIT if immediately else signal.SIGINT, patience=60)
            self.process = None

    def sql(self, text, database=places.DATABASE, timeout=60):
        """What psql prints for some statements, straight on this server."""
        return psql(self.place, self.port, text, database, timeout)

    def _command(self, command, timeout):
        program = self.place.program(command[0])
        processes.run(
            [program, *command[1:]],
            timeout,
            who=self.place.who,
            folder=self.folder,
            environment=self.place.environment(),
        )


def psql(place, port, text, database=places.DATABASE, timeout=60):
    """What psql prints for some statements, bare."""
    command = [place.program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1"]
    command += ["-h", "127.0.0.1", "-p", port, "-U", places.USER, "-d", database, "-c", text]
    return processes.run(command, timeout, environment=place.environment()).strip()


def template(place, scale):
    """A stopped server with pgbench's tables and the one for COPY."""
    server = Server(place, "template", {"wal_level": "minimal", "max_wal_senders": "0"})
    server.initialise()
    server.start()
    try:
        server.sql(f"create database {places.DATABASE}", database="postgres")
        fill = [place.program("pgbench"), "-i", "-q", "-I", "dtGp", "-s", scale, "-h", "127.0.0.1"]
        fill += ["-p", server.port, "-U", places.USER, places.DATABASE]
        processes.run(fill, timeout=600, environment=place.environment())
        server.sql("create table bench_copy (id integer primary key, word text not null, at timestamptz)")
        server.stop(immediately=False)
    finally:
        server.stop()
    return server


def settle_pages(server):
    """Puts every page into the log once, so that no run pays for whole pages again."""
    server.sql("vacuum (freeze, analyze)", timeout=300)


def tables_hash(server):
    """Each table's number of rows and a hash over all of them, whatever their order."""
    names = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "bench_copy"]
    one = "select '{0}' as name, count(*) as rows, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) as sum from {0} t"
    text = " union all ".join(one.format(name) for name in names)
    return server.sql(text + " order by 1", timeout=120)
