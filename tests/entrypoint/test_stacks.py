"""Laws of the stacks that are written before a blocked process is ended (C19, C20)."""

from tests.entrypoint.programs import Run

BLOCKED = """
def block_it():
    time.sleep(600)

class Blocking(Server):
    async def stop(self, exception=None):
        {before}
        block_it()

{globals}

with entrypoint(Blocking(), shutdown_timeout=0.5):
    pass
"""


def test_the_stacks_are_written_when_no_descriptor_is_left(run: Run) -> None:
    source = """
def use_up_all_descriptors():
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError:
        pass
"""
    outcome = run(BLOCKED.format(before="use_up_all_descriptors()", globals=source))
    assert outcome.returncode == 70
    assert "in block_it" in outcome.stderr
    assert "in stop" in outcome.stderr


def test_threads_that_come_and_go_hide_no_stack(run: Run) -> None:
    source = """
def churn():
    while True:
        threads = [threading.Thread(target=time.sleep, args=(0,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
"""
    before = "threading.Thread(target=churn, daemon=True).start()"
    outcome = run(BLOCKED.format(before=before, globals=source))
    assert outcome.returncode == 70
    assert "in block_it" in outcome.stderr
    assert "in churn" in outcome.stderr
