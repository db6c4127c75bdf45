"""Weights from the learner to the samplers, and the proof that they arrived."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from cluster.config import RunConfig
from cluster.device import Device
from cluster.pool import Pool
from rollout.transfer import STAGED


class Publisher:
    """One publish at a time. Raises RuntimeError when samplers hold anything but what was sent."""

    def __init__(
        self, config: RunConfig, device: Device, learners: Pool, samplers: Pool, canary: list[int]
    ) -> None:
        self._learners, self._samplers, self._tokens = learners, samplers, canary
        self._bound = device.canary_bound
        self._in_flight = config.schedule.in_flight
        self._meanwhile = config.schedule.max_staleness > 0 and device.weight_backend in STAGED
        """Groups sampled before may be trained while samplers exchange their weights."""
        self._exchanging: asyncio.Task[None] | None = None
        self._metrics: dict[str, float] = {}
        """Of the last publish that ended."""

    async def publish(
        self,
        version: int,
        release: Callable[[], Awaitable[None]] | None = None,
        background: asyncio.TaskGroup | None = None,
    ) -> dict[str, float]:
        """Give the samplers the learner's weights, as this version; `release` once they serve them.
        Where training goes on meanwhile, in the background, and the metrics are those of the
        publish before."""
        await self.ended()
        started = time.monotonic()
        await self._learners.all("stage_weights")
        [learned, *_] = await self._learners.all("score", self._tokens)
        exchange = self._exchange(version, learned, time.monotonic() - started, release)
        if background is None or not self._meanwhile:
            await exchange
        else:
            self._exchanging = background.create_task(exchange)
            await asyncio.sleep(0)  # its deadline, which names samplers, runs before `take`'s
        return self._metrics

    async def ended(self) -> None:
        """The publish under way, if any, is done and was found right."""
        if self._exchanging is not None:
            await asyncio.wait([self._exchanging])
            self._exchanging.result()

    async def _exchange(
        self,
        version: int,
        learned: list[float],
        staged: float,
        release: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """Each sampler acknowledges version and digest before it serves again; then all score what
        the learner did. `staged`: seconds that the learner took."""
        await self._samplers.all("staged")
        started = time.monotonic()
        await self._samplers.all("pause", self._in_flight)
        sent = await self._send(version)
        await self._samplers.all("resume")
        paused = time.monotonic() - started
        if release is not None:
            await release()
        gap = await self._canary(learned)
        if not gap <= self._bound:
            raise RuntimeError(
                f"after publishing version {version}, learner and samplers disagree by {gap:.2g} "
                f"on the logprobs of the same tokens (cluster.canary_bound={self._bound}): the "
                "samplers do not hold the learner's weights"
            )
        self._metrics = {
            "policy/canary_gap": gap,
            "weights/stage_seconds": staged,
            "weights/pause_seconds": paused,
            "weights/sent": sent,
        }

    async def _send(self, version: int) -> float:
        """Weights to paused samplers; each says which it holds. The share of the bytes that had to
        travel."""
        [(digest, sent), *_] = await self._learners.all("send_weights", version)
        for index, answer in enumerate(await self._samplers.all("acknowledged")):
            if tuple(answer) != (version, digest):
                raise RuntimeError(
                    f"sampler/{index} holds version {answer[0]} with digest "
                    f"{answer[1][:12] or 'none'}; the learner sent version {version} with digest "
                    f"{digest[:12] or 'none'}"
                )
        return sent

    async def _canary(self, learned: list[float]) -> float:
        """The largest logprob difference between the learner and any sampler."""
        return max(
            abs(ours - theirs)
            for answer in await self._samplers.all("score", self._tokens)
            for ours, theirs in zip(learned, answer, strict=True)
        )
