"""Processes begin again with large pages, once, and with their arguments."""

import os
import subprocess
import sys

import pytest

from fgvclib.utils import memory
from fgvclib.utils.memory import ASKED, LARGE_PAGES, VARIABLE

SCRIPT = f"""
import os, sys
from fgvclib.utils.memory import restart_with_large_pages
print("begins", os.getpid(), flush=True)
restart_with_large_pages()
print(os.environ.get("{VARIABLE}"), *sys.argv[1:])
"""


def printed(**environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name not in (VARIABLE, ASKED)}
    command = [sys.executable, "-c", SCRIPT, "one", "two words"]
    ended = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is read by Linux's C library alone")
def test_a_process_begins_again_as_itself_and_with_its_arguments():
    first, second, last = printed()
    assert first == second  # the number of a process whose shell, lock or parent waits for it stays
    assert last == f"{LARGE_PAGES} one two words"


def test_a_setting_of_the_user_stays_and_costs_no_second_start():
    first, last = printed(**{VARIABLE: "glibc.malloc.check=0"})
    assert first.startswith("begins")
    assert last == "glibc.malloc.check=0 one two words"


def test_where_the_variable_is_taken_away_a_process_does_not_begin_for_ever():
    first, last = printed(**{ASKED: "1"})
    assert first.startswith("begins") and last == "None one two words"


def test_elsewhere_nothing_is_restarted(monkeypatch):
    for name in (VARIABLE, ASKED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "execv", lambda *command: pytest.fail("started again"))
    memory.restart_with_large_pages()
    assert VARIABLE not in os.environ
