"""Where a run lives: one temporary folder, free ports, and the programs it uses."""

import fcntl
import os
import pathlib
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile

import processes

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The same superuser, password and database everywhere; the password holds for this run alone.
USER = "bench"
DATABASE = "bench"


class Place:
    """Everything that the systems of one run share."""

    def __init__(self, parent):
        self.who = processes.account()
        self.password = secrets.token_hex(12)
        remove_left_over(pathlib.Path(parent))
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="synapsedb-bench-", dir=parent))
        # Others may pass through, but not look.
        self.folder.chmod(0o711)
        self._lock = open(self.folder / "lock", "w", encoding="ascii")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.programs = postgres_programs()
        self._ports = set()

    def program(self, name):
        """The path of one of PostgreSQL's programs."""
        return self.programs / name

    def environment(self):
        """What psql and pgbench need to log in."""
        return {"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "10", "PGOPTIONS": ""}

    def make(self, name):
        """A folder of its own for a server, which belongs to the user it runs as."""
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        self.give(folder)
        return folder

    def give(self, path):
        """Hands a file or folder to the servers' user."""
        if self.who is not None:
            os.chown(path, self.who.pw_uid, self.who.pw_gid)

    def write(self, path, text):
        """Writes a file that the servers' user alone can read."""
        path.touch(mode=0o600)
        path.write_text(text)
        self.give(path)

    def port(self):
        """A free port below those that the system hands out for outgoing connections."""
        for _ in range(1000):
            port = random.randrange(20000, 32000)
            if port not in self._ports and is_free(port):
                self._ports.add(port)
                return port
        raise processes.Failed("no free port between 20000 and 32000")

    def remove(self):
        """Removes the folder with all in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_left_over(parent):
    """Removes the folders of runs that were killed: ours, and locked by nobody."""
    for folder in parent.glob("synapsedb-bench-*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with open(folder / "lock", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(port):
    """Whether something takes connections there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def postgres_programs():
    """The folder with postgres, psql and pgbench, found or fetched as for the demo."""
    found = subprocess.run([ROOT / "scripts/get-postgres"], stdout=subprocess.PIPE, text=True, timeout=600)
    if found.returncode != 0:
        raise processes.Failed("no PostgreSQL to be had")
    programs = pathlib.Path(found.stdout.strip())
    if not (programs / "pgbench").is_file():
        raise processes.Failed(f"{programs} has no pgbench")
    return programs


def synapsedb_program():
    """The program under test: SYNAPSEDB_BIN, or the release build."""
    named = os.environ.get("SYNAPSEDB_BIN")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = pathlib.Path(named) if named else target / "release/synapsedb"
    if not program.is_file():
        raise processes.Failed(f"{program} is not there: cargo build --release")
    return program


def package_program(program, package):
    """A program of a Debian package, installed where root may; None where it cannot be had."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(program, path=places)
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    print(f"Installing Debian's {package} ...", file=sys.stderr, flush=True)
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    for command in (["apt-get", "update", "-qq"], install):
        try:
            processes.run(command, timeout=300, environment=quiet)
        except processes.Failed as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            return None
    if shutil.which("systemctl") and pathlib.Path("/run/systemd/system").is_dir():
        # The package starts a service of its own, which nobody asked for.
        subprocess.run(["systemctl", "disable", "--now", package], capture_output=True, timeout=60)
    return shutil.which(program, path=places)
