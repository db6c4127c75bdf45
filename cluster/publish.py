"""Weights from the learner to the samplers, and the proof that they arrived."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config import RunConfig
from cluster.device import Device
from cluster.errors import Lost
from cluster.pool import Member, Pool
from rollout.transfer import STAGED


@dataclass(frozen=True, slots=True)
class Staged:
    """What the learner made ready."""

    digest: str
    sent: float
    learned: list[float]
    """Its logprobs of the canary's tokens."""
    seconds: float


class Publisher:
    """One publish at a time. Raises RuntimeError when samplers hold anything but what was sent.

    A sampler that dies is left out: whoever takes its place is given the weights by `admit`. Raises
    Lost when the learner does.
    """

    def __init__(
        self, config: RunConfig, device: Device, learners: Pool, samplers: Pool, canary: list[int]
    ) -> None:
        self._learners, self._samplers, self._tokens = learners, samplers, canary
        self._bound = device.canary_bound
        self._in_flight = config.schedule.in_flight
        self.stages = device.weight_backend in STAGED
        self._meanwhile = config.schedule.max_staleness > 0 and self.stages
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
        if not self._samplers.live:  # whoever comes is given the weights of that moment
            if release is not None:
                await release()
            return self._metrics
        staged = await self._stage()
        exchange = self._exchange(version, staged, release)
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

    async def admit(self, newcomer: Member, version: int) -> None:
        """Give one sampler that serves nobody yet the learner's weights, and prove that it has
        them. Raises Lost when it died meanwhile."""
        await self.ended()
        staged = await self._stage()
        await self._give(version, staged, [newcomer])
        await self._compare(version, staged, [newcomer])
        await self._samplers.ask(newcomer, "beat")  # those that die are left out above

    async def _stage(self) -> Staged:
        started = time.monotonic()
        [(digest, sent), *_] = await self._learners.all("stage_weights")
        [learned, *_] = await self._learners.all("score", self._tokens)
        return Staged(digest, sent, learned, time.monotonic() - started)

    async def _exchange(
        self, version: int, staged: Staged, release: Callable[[], Awaitable[None]] | None
    ) -> None:
        """`release` when all serve the new weights; then they are held against the learner's."""
        members = self._samplers.live
        paused = await self._give(version, staged, members)
        if release is not None:
            await release()
        self._metrics = {
            "policy/canary_gap": await self._compare(version, staged, members),
            "weights/stage_seconds": staged.seconds,
            "weights/pause_seconds": paused,
            "weights/sent": staged.sent,
        }

    async def _give(self, version: int, staged: Staged, members: Sequence[Member]) -> float:
        """Until these samplers serve the weights; the longest that one stood still."""
        if self.stages:
            return max(
                await self._of_each(self._switch, members, version, staged.digest), default=0
            )
        started = time.monotonic()
        await self._of_each(self._samplers.ask, members, "pause", self._in_flight)
        await self._learners.all("send_weights", version)
        await self._of_each(self._resume, members, version, staged.digest)
        return time.monotonic() - started

    async def _switch(self, member: Member, version: int, digest: str) -> float:
        await self._samplers.ask(member, "staged")
        answer = await self._samplers.ask(member, "switch", version, digest, self._in_flight)
        _must_hold(member[0], answer[:2], version, digest)
        return answer[2]

    async def _resume(self, member: Member, version: int, digest: str) -> None:
        answer = await self._samplers.ask(member, "acknowledged")
        _must_hold(member[0], answer, version, digest)
        await self._samplers.ask(member, "resume")

    async def _compare(self, version: int, staged: Staged, members: Sequence[Member]) -> float:
        """The largest logprob difference between the learner and these samplers."""
        gap = max(
            (
                abs(ours - theirs)
                for answer in await self._of_each(
                    self._samplers.ask, members, "score", self._tokens
                )
                for ours, theirs in zip(staged.learned, answer, strict=True)
            ),
            default=0.0,
        )
        if not gap <= self._bound:
            raise RuntimeError(
                f"after publishing version {version}, learner and samplers disagree by {gap:.2g} "
                f"on the logprobs of the same tokens (cluster.canary_bound={self._bound}): the "
                "samplers do not hold the learner's weights"
            )
        return gap

    async def _of_each(
        self, ask: Callable[..., Awaitable[Any]], members: Sequence[Member], *given: Any
    ) -> list[Any]:
        """What these samplers say, all asked at once; those that die meanwhile are left out."""
        said = await asyncio.gather(
            *(ask(each, *given) for each in members), return_exceptions=True
        )
        for each in said:
            if isinstance(each, BaseException) and not isinstance(each, Lost):
                raise each
        return [each for each in said if not isinstance(each, Lost)]


def _must_hold(index: int, answer: Sequence[Any], version: int, digest: str) -> None:
    if tuple(answer) != (version, digest):
        raise RuntimeError(
            f"sampler/{index} holds version {answer[0]} with digest {answer[1][:12] or 'none'}; "
            f"the learner sent version {version} with digest {digest[:12] or 'none'}"
        )
