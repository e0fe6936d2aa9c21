"""What the Python drivers' scripts share: the place to connect to, and cases that print their names.

A case is a function whose name says what is tried. All are run though one fails; the exit code is 1 then.
Arguments choose cases by a part of their name.
"""

import asyncio
import inspect
import os
import signal
import sys
import time
import traceback

HOST = os.environ["PROXY_HOST"]
PORT = int(os.environ["PROXY_PORT"])
USER = os.environ["PROXY_USER"]
PASSWORD = os.environ["PROXY_PASSWORD"]
DATABASE = os.environ["PROXY_DATABASE"]
# The certificate that the proxy shows, where it has one.
CERTIFICATE = os.environ.get("PROXY_CERTIFICATE")
# The connections that a pool of the proxy has: more clients than these must share them.
POOL = int(os.environ.get("PROXY_POOL", "8"))
# For one case on a busy machine; and for what must happen within one.
CASE_S = 60
PATIENCE_S = 20

CASES = []


def case(function):
    """Makes a function one of the cases, in the order of the file."""
    CASES.append(function)
    return function


def equal(found, wanted, what=""):
    if found != wanted:
        raise AssertionError(f"{what or 'found'}: {found!r}, wanted {wanted!r}")


def until(what, question):
    """Waits until a question is answered with yes."""
    end = time.monotonic() + PATIENCE_S
    while not question():
        if time.monotonic() > end:
            raise AssertionError(f"in vain: {what}")
        time.sleep(0.02)


async def until_async(what, question):
    """The same for a coroutine's answer."""
    end = time.monotonic() + PATIENCE_S
    while not await question():
        if time.monotonic() > end:
            raise AssertionError(f"in vain: {what}")
        await asyncio.sleep(0.02)


def too_long(_number, _frame):
    raise TimeoutError(f"the case did not end within {CASE_S} s")


def run_one(function):
    if inspect.iscoroutinefunction(function):
        asyncio.run(asyncio.wait_for(function(), CASE_S))
        return
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(CASE_S)
    try:
        function()
    finally:
        signal.alarm(0)


def main():
    failed = []
    for function in CASES:
        name = function.__name__
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        began = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            run_one(function)
        except BaseException:
            print(f"{name}: FAILED", flush=True)
            traceback.print_exc(file=sys.stdout)
            failed.append(name)
        else:
            print(f"{name}: {time.monotonic() - began:.2f} s", flush=True)
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}", flush=True)
        sys.stdout.flush()
        # Threads that hang must not keep the process.
        os._exit(1)
    if not CASES:
        os._exit(1)
