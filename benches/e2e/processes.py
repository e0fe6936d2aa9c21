"""Processes: each in a group of its own, each bounded in time, none left behind.

Servers are started with `start` and ended with `stop`; commands are run with `run`, which kills what takes
too long. As root, what refuses to run as root runs as another user. On Linux a process that was started here
dies with this program, even where that is killed.
"""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time


class Failed(Exception):
    """A command failed or took too long."""


def account():
    """None where servers run as ourselves; for root the user it starts them as."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Failed("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")


def _as_user(who):
    if who is None:
        return {}
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}


def _die_with_us(number):
    """What the child does before its program: asks the kernel for a signal at our death."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return lambda: library.prctl(1, number)


def start(command, log, who=None, folder=None, environment=None, at_our_death=signal.SIGKILL):
    """Starts a server; what it says goes to the file `log`."""
    with open(log, "ab") as out:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=_die_with_us(at_our_death),
            **_as_user(who),
        )


def stop(process, number, patience=15):
    """Asks a server to stop, waits, and kills its group if it will not."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            pass
    _kill_group(process)
    process.wait()


def run(command, timeout, who=None, folder=None, environment=None, stdin=None):
    """Runs a command to its end; what it printed, or `Failed` with its last words."""
    command = [str(part) for part in command]
    process = subprocess.Popen(
        command,
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=_die_with_us(signal.SIGKILL),
        **_as_user(who),
    )
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"{os.path.basename(command[0])} took more than {timeout:.0f} s") from None
    finally:
        # On a timeout and on Ctrl-C as well: nothing of it stays.
        if process.poll() is None:
            _kill_group(process)
            process.communicate()
    if process.returncode != 0:
        words = [line for line in (errors or out).strip().splitlines() if line.strip()]
        telling = [line for line in words if "error" in line.lower() or "FATAL" in line]
        last = (telling or words or [f"exit code {process.returncode}"])[0]
        raise Failed(f"{os.path.basename(command[0])}: {last.strip()}")
    return out


def _kill_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def until(what, condition, patience, every=0.05, process=None):
    """Waits until `condition()` is true; `Failed` when it takes too long or `process` has ended."""
    end = time.monotonic() + patience
    while not condition():
        if process is not None and process.poll() is not None:
            raise Failed(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > end:
            raise Failed(f"{what} took more than {patience} s")
        time.sleep(every)
