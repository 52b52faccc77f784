"""Call functions on a schedule: at an interval, and at the times of a cron expression.

    python examples/scheduled.py --line "*/5 * * * * *"

A sensor is read periodically, and a cron line says when a report is due. The report is sent by a
task that takes its time: Ctrl-C stops the program, which waits until it is sent. Cron lines need
croniter: pip install 'svcrun[cron]'.
"""

import argparse
import asyncio
import random

from svcrun import entrypoint
from svcrun.service import GracefulService, PeriodicService
from svcrun.service.cron import CronService, cron


class Sensor(PeriodicService):
    """A sensor that is read every `interval` seconds."""

    async def start(self) -> None:
        self.values: list[float] = []
        await super().start()

    async def callback(self) -> None:
        self.values.append(random.gauss(20, 1))


class Reports(GracefulService, CronService):
    """A service that sends the measurements of the sensor."""

    __required__ = ("sensor",)
    sensor: Sensor
    duration: float = 1.5
    sent = 0

    async def report(self) -> None:
        """Start to send a report, without waiting for its end."""
        self.latest = self.create_graceful_task(self.send(self.sensor.values.copy()))

    async def send(self, values: list[float]) -> None:
        """Send a report."""
        print(f"sending a report of {len(values)} values", flush=True)
        await asyncio.sleep(self.duration)
        self.sent += 1
        print(f"report {self.sent} is sent", flush=True)

    @cron("@hourly")
    async def forget(self) -> None:
        """Delete old measurements."""
        self.sensor.values.clear()


def main() -> None:
    """Run the services until a signal ends them."""
    parser = argparse.ArgumentParser(description="Measure periodically, report by a cron line.")
    parser.add_argument(
        "--interval", type=float, default=0.5, help="seconds between values (%(default)s)"
    )
    parser.add_argument(
        "--line", default="* * * * * *", help='when to report (every second: "%(default)s")'
    )
    parser.add_argument("--timezone", default="UTC", help="what the line is meant in (%(default)s)")
    parser.add_argument(
        "--duration", type=float, default=1.5, help="seconds to send a report (%(default)s)"
    )
    options = parser.parse_args()

    sensor = Sensor(interval=options.interval, name="sensor")
    reports = Reports(
        name="reports", sensor=sensor, duration=options.duration, timezone=options.timezone
    )
    reports.register(reports.report, options.line)
    with entrypoint(sensor, reports) as loop:
        for call in reports.upcoming(3):
            print("due", call, flush=True)
        loop.run_forever()
    print(f"{sensor.periodic.calls} values were measured, {reports.sent} reports sent")


if __name__ == "__main__":
    main()
