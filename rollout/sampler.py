"""Sampler: a vLLM engine behind four verbs. A plain class; `cluster/actors.py` makes it a Ray
actor.

One thread owns the engine. Whatever is asked of the engine (new prompts, a pause, a weight update)
is queued and done between two decode steps, so nothing here needs a lock, and an update can never
meet a running step. Tokens in, tokens out: nothing is re-tokenized, text is a view for the
verifiers.
"""

import contextlib
import fcntl
import gc
import hashlib
import itertools
import os
import queue
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from rewards import faults
from rollout.config import InFlight, SamplerConfig, SamplingConfig
from rollout.leftovers import TEMPORARY
from rollout.types import Completion, FinishReason, Prompt

STAGING = 0.5
"""How long new weights are made ready after a decode step, in such steps."""
IDLE_SECONDS = 0.1
"""The same while nothing is decoded; what is asked meanwhile waits."""

Phase = Literal["expect", "init", "start", "update"]


def sample_seed(run: str, prompt_id: str, ticket: int, sample: int, attempt: int = 0) -> int:
    """The seed of one completion: a hash, so that it depends on nothing but what it is for.

    vLLM's own `n=G` would give sibling j the seed `seed + j`; a hash per sibling cannot overlap
    with another prompt's. The ticket tells two epochs of one prompt apart.
    """
    key = f"{run}\0{prompt_id}\0{ticket}\0{sample}\0{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


@dataclass
class _Pending:
    """Requests that are answered together."""

    future: Future
    finish: Callable[[list[Any]], Any]
    """Engine outputs, in the order of the requests, to what the future gives."""
    token_ids: list[int]
    """Of the prompt"""
    params: list[Any]
    """vLLM's SamplingParams, one per request"""
    outputs: list[Any]
    missing: int
    may_end: bool
    """They are completions, which a pause may wait for or abort."""


class EngineDied(RuntimeError):
    """The engine failed, and all that it was asked for with it: this sampler is of no more use."""


class Sampler:
    """Samples completions with a vLLM engine and takes new weights between two steps.

    `engine_args` are the device's arguments to vLLM (dtype, cache size, weight transfer backend);
    `config.engine` overrides them. Building one takes about ten seconds on a CPU, nearly all of it
    imports. Raises ValueError when the model cannot be loaded.
    """

    def __init__(
        self, model: str, config: SamplerConfig, engine_args: dict[str, Any], max_model_len: int
    ) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[Future], None], Future]] = (
            queue.SimpleQueue()
        )
        self._pending: dict[str, tuple[_Pending, int]] = {}
        """What the engine has: completions, `_decoding` in number, and prompts to be scored"""
        self._line: deque[tuple[_Pending, int]] = deque()
        """Completions that the engine has no room for yet"""
        self._most, self._decoding = config.max_running, 0
        self._ids = itertools.count()
        self._keep_kv = config.keep_kv
        self._version = 0
        self._paused = False
        self._pausing: tuple[Future, Callable[[], Any]] | None = None
        """A pause that waits for the completions named in `_ending`: who waits for it, and what is
        done once nothing runs."""
        self._ending: list[str] = []
        self._held: list[tuple[Callable[[Future], None], Future]] = []
        """Prompts that came meanwhile."""
        self._staging: Future | None = None
        """Of the caller who waits until new weights lie ready."""
        self._failure: BaseException | None = None
        self._stopping = False
        self._closing = False
        self._turned: float | None = None
        """When the engine's thread last came round; None while it has nothing to do."""
        started: Future = Future()
        args = self._engine_args(model, config, engine_args, max_model_len)
        self._thread = threading.Thread(target=self._own_engine, args=(args, started), daemon=True)
        self._thread.start()
        started.result()

    @staticmethod
    def _engine_args(
        model: str, config: SamplerConfig, device_args: dict[str, Any], max_model_len: int
    ) -> dict[str, Any]:
        return {
            "model": model,
            "max_model_len": max_model_len,
            # One more than completions: what is scored after an update waits for none of them.
            "max_num_seqs": config.max_running + 1,
            "tensor_parallel_size": config.tensor_parallel,
            "skip_tokenizer_init": True,
            # Logprobs of the distribution that was sampled from: after temperature.
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": "rollout.receive.Receiver",
            "disable_log_stats": True,
            **device_args,
            # With chunked prefill, a seeded request that is prefilled in parts kills the CPU engine
            # (its generator has no offset); without it the batch must hold the longest prompt.
            "max_num_batched_tokens": max(4096, max_model_len, config.max_running + 1),
            **config.engine,
        }

    def _own_engine(self, args: dict[str, Any], started: Future) -> None:
        try:
            with _nothing_left_behind():
                self._engine = _build_engine(args)
            self._engine.set_weight_version("0")
            self._tokenizer = _load_tokenizer(args["model"])
            # Prompts come as tokens, but texts that end a completion are looked for as text.
            self._engine.output_processor.tokenizer = self._tokenizer
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        while True:
            self._run_commands()
            self._turned = time.monotonic()
            if self._stopping:
                return
            decodes = self._pending and not self._paused
            begun = time.perf_counter()
            try:
                if decodes:
                    faults.point("sampler.decode")
                    for output in self._engine.step():
                        if output.finished:
                            self._collect(output)
                    self._feed()
                    self._pause_if_ended()
            except BaseException as error:  # the engine is gone; say so to everybody who waits
                self._fail(error)
            spent = time.perf_counter() - begun
            self._stage_on(STAGING * spent if decodes else IDLE_SECONDS)

    def _run_commands(self) -> None:
        """Do what was asked, waiting for something to do when the engine has nothing."""
        idle = self._staging is None and (self._paused or not self._pending)
        while True:
            self._turned = None if idle else time.monotonic()
            try:
                command, future = self._queue.get(block=idle)
            except queue.Empty:
                return
            self._turned = time.monotonic()
            idle = False
            try:
                if self._failure is not None and not self._closing:
                    raise EngineDied(f"this sampler's engine died: {self._failure!r}")
                command(future)
            except BaseException as error:
                told = self._told(error)
                if not future.done():
                    future.set_exception(told)
            if self._stopping:
                return

    def _ask(self, command: Callable[[Future], None]) -> Future:
        """Queue a command that answers its future itself, then or later."""
        future: Future = Future()
        # From here on nobody can cancel it: a caller that gives up must not make the engine's
        # thread stumble over a future that is done already.
        future.set_running_or_notify_cancel()
        self._queue.put((command, future))
        return future

    def _do(self, command: Callable[[], Any]) -> Future:
        """Queue a command whose result is the answer."""
        return self._ask(lambda future: future.set_result(command()))

    def _told(self, error: BaseException) -> BaseException:
        """What the caller of a command that failed is told. An engine core in a process of its own
        may die between two steps: then everybody is."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if not isinstance(error, EngineDeadError):
            return error
        if self._failure is None:
            self._fail(error)
        return EngineDied(f"this sampler's engine died: {error!r}")

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        futures = [group.future for group, _ in (*self._pending.values(), *self._line)]
        futures += [future for _, future in self._held]
        futures += [self._staging] if self._staging is not None else []
        futures += [self._pausing[0]] if self._pausing is not None else []
        self._pending.clear()
        self._line.clear()
        self._decoding = 0
        self._held, self._pausing, self._staging = [], None, None
        for future in futures:
            if not future.done():
                future.set_exception(EngineDied(f"this sampler's engine died: {error!r}"))

    @property
    def silence(self) -> float:
        """Seconds since the engine's thread last came round, while it has something to do."""
        turned = self._turned
        return time.monotonic() - turned if turned is not None else 0.0

    # -- sampling ---------------------------------------------------------------------------------

    def generate(
        self, prompt: Prompt, sampling: SamplingConfig, seeds: Sequence[int]
    ) -> "Future[tuple[Completion, ...]]":
        """One completion per seed; none at all when a pause aborted them. The same seed under the
        same weights gives the same completion, whatever else runs beside it. Greedy when `seeds` is
        empty: one completion."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = [
            SamplingParams(
                temperature=sampling.temperature if seeds else 0.0,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                stop_token_ids=sampling.stop_token_ids,
                stop=sampling.stop,
                seed=seed,
                logprobs=0,
                flat_logprobs=True,
                # What vLLM looks for them in. An end of turn may be one of them.
                detokenize=bool(sampling.stop),
                skip_special_tokens=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for seed in (seeds or [None])
        ]
        return self._submit(
            prompt.token_ids.tolist(),
            params,
            lambda outputs: tuple(map(self._completion, outputs)),
            may_end=True,
        )

    def score(self, token_ids: list[int]) -> "Future[np.ndarray]":
        """Logprob (temperature 1) of each token but the first, under the weights of now."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=1.0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )

        def logprobs(outputs: list[Any]) -> np.ndarray:
            # A flat table of all positions' logprobs; at each the prompt's own token comes first.
            flat = outputs[0].prompt_logprobs
            return np.array([flat.logprobs[start] for start in flat.start_indices[1:]], np.float32)

        return self._submit(token_ids, [params], logprobs)

    def _submit(
        self,
        token_ids: list[int],
        params: list[Any],
        finish: Callable[[list[Any]], Any],
        *,
        may_end: bool = False,
    ) -> Future:
        def add(future: Future) -> None:
            if self._pausing is not None:
                self._held.append((add, future))
                return
            outputs = [None] * len(params)
            group = _Pending(
                future, finish, token_ids, params, outputs, missing=len(params), may_end=may_end
            )
            if may_end:
                self._line.extend((group, index) for index in range(len(params)))
                self._feed()
            else:
                self._add(group, 0)

        return self._ask(add)

    def _feed(self) -> None:
        """Hand the engine as many completions as it runs at once. Where its cache has room none
        waits inside of it: what is scored there waits for no prompt that is new."""
        while self._line and self._decoding < self._most and self._pausing is None:
            group, index = self._line.popleft()
            try:
                self._add(group, index)
            except Exception as error:  # all of its siblings or none
                group.future.set_exception(error)
                self._end([group])

    def _end(self, groups: Sequence[_Pending]) -> None:
        """Forget completions, those that are under way included."""
        ended = {id(group) for group in groups}
        names = [name for name, (group, _) in self._pending.items() if id(group) in ended]
        self._engine.abort_request(names)
        for name in names:
            del self._pending[name]
        self._decoding -= len(names)
        self._line = deque(item for item in self._line if id(item[0]) not in ended)

    def _add(self, group: _Pending, index: int) -> None:
        name = f"r{next(self._ids)}"
        given: dict[str, Any] = {"prompt_token_ids": group.token_ids}
        if self._keep_kv:  # the prefix cache outlives updates; what is salted is found under it
            given["cache_salt"] = f"version {self._version}"
        self._engine.add_request(name, given, group.params[index])
        self._pending[name] = (group, index)
        self._decoding += group.may_end

    def _collect(self, output: Any) -> None:
        group, index = self._pending.pop(output.request_id)
        self._decoding -= group.may_end
        group.outputs[index] = output
        group.missing -= 1
        if group.missing > 0:
            return
        try:
            group.future.set_result(group.finish(group.outputs))
        except Exception as error:
            group.future.set_exception(error)

    def _completion(self, output: Any) -> Completion:
        chosen = output.outputs[0]
        token_ids = np.array(chosen.token_ids, dtype=np.int32)
        versions = np.empty(len(token_ids), dtype=np.int32)
        for span in chosen.weight_versions:
            versions[span.start : span.end] = int(span.version)
        ended = chosen.finish_reason == "stop"
        by_token = ended and not isinstance(chosen.stop_reason, str)
        text_ids = token_ids[:-1] if by_token else token_ids
        return Completion(
            token_ids=token_ids,
            trainable=np.ones(len(token_ids), dtype=np.bool_),
            logprobs=np.array(chosen.logprobs.logprobs, dtype=np.float32),
            versions=versions,
            text=self._tokenizer.decode(text_ids, skip_special_tokens=True),
            finish_reason=cast(FinishReason, chosen.finish_reason),
        )

    # -- control ----------------------------------------------------------------------------------

    def pause(self, in_flight: InFlight = "keep") -> Future:
        """Stop between two tokens. New prompts are accepted and wait.

        Running completions are frozen, or end before the pause begins, or are aborted: then their
        callers get no completion at all. Those that wait in line go on waiting.
        """
        return self._ask(lambda future: self._pause(in_flight, future, lambda: None))

    def switch(
        self, version: int, digest: str, in_flight: InFlight = "keep"
    ) -> "Future[tuple[int, str, float]]":
        """Serve the staged weights of this digest, as this version: a pause, the exchange, and on.

        The acknowledgement: the version the engine now stamps on tokens, the digest of the bytes it
        serves, the seconds of the pause.
        """

        def exchange() -> tuple[int, str, float]:
            faults.point("push.before_switch")
            begun = time.perf_counter()
            self._update("start")
            self._update("update", {"digest": digest})
            faults.point("push.before_finish")
            served = self._finish(version)
            self._go_on()
            return (*served, time.perf_counter() - begun)

        return self._ask(lambda future: self._pause(in_flight, future, exchange))

    def _pause(self, in_flight: InFlight, future: Future, then: Callable[[], Any]) -> None:
        if self._paused or self._pausing is not None:
            raise RuntimeError("this sampler is paused already, or about to be")
        if in_flight == "wait":
            self._ending = [name for name, (group, _) in self._pending.items() if group.may_end]
        if in_flight == "abort":
            self._abort()
        self._pausing = future, then
        self._pause_if_ended()

    def _pause_if_ended(self) -> None:
        """The pause that was asked for, once all that it waits for has ended."""
        if self._pausing is None or any(name in self._pending for name in self._ending):
            return
        (future, then), self._pausing, self._ending = self._pausing, None, []
        try:
            self._engine.sleep(level=0, mode="keep")
        except BaseException as error:
            future.set_exception(error)
            raise
        self._paused = True
        try:
            future.set_result(then())
        except Exception as error:  # it stays paused: what it holds is not known
            future.set_exception(self._told(error))

    def _abort(self) -> None:
        """End every completion that is under way, and its siblings."""
        begun = {id(group): group for group, _ in self._pending.values() if group.may_end}
        self._end(list(begun.values()))
        for group in begun.values():
            group.future.set_result(())

    def resume(self) -> Future:
        """Go on. Keys and values of the frozen completions are computed anew and the prefix cache
        is empty: nothing that old weights computed is ever read under new ones. With `keep_kv`,
        completions that have begun read on what they have; nobody else does."""
        return self._do(self._go_on)

    def _go_on(self) -> None:
        if self._keep_kv:
            self._begin_anew(self._not_begun())
        else:
            self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.wake_up(tags=["scheduling"])
        self._paused = False
        for held in self._held:
            self._queue.put(held)
        self._held = []
        self._feed()

    def _not_begun(self) -> list[str]:
        """Requests without a token of their own so far."""
        processor = self._engine.output_processor
        inner = {name: processor.external_req_ids.get(name, ()) for name in self._pending}
        return [
            name
            for name, ids in inner.items()
            if all(processor.request_states[each].is_prefilling for each in ids)
        ]

    def _begin_anew(self, names: list[str]) -> None:
        """What they would find in the prefix cache is not of the weights of now."""
        self._engine.abort_request(names)
        for name in names:
            group, index = self._pending.pop(name)
            self._decoding -= group.may_end
            self._add(group, index)

    def stage(self, info: dict[str, Any]) -> Future:
        """Get weights ready beside those that serve, a part after each decode step. RuntimeError
        when they are not what the learner sent: those that serve are untouched then."""

        def stage(future: Future) -> None:
            before, self._staging = self._staging, None
            if before is not None:  # the learner died, and its successor begins again
                before.set_exception(RuntimeError("other weights came before these were ready"))
            self._engine.collective_rpc("begin_staging", args=(info,))
            self._staging = future

        return self._ask(stage)

    def _stage_on(self, seconds: float) -> None:
        if self._staging is None:
            return
        try:
            if not all(self._engine.collective_rpc("stage_on", args=(seconds,))):
                return
            self._staging.set_result(None)
        except Exception as error:
            staging, told = self._staging, self._told(error)
            if not staging.done():
                staging.set_exception(told)
        self._staging = None

    def update(self, phase: Phase, info: dict[str, Any]) -> Future:
        """A step of vLLM's weight transfer protocol, on every worker of this engine."""
        return self._do(lambda: self._update(phase, info))

    def _update(self, phase: Phase, *info: dict[str, Any]) -> None:
        methods = {
            "expect": "expect_weights",
            "init": "init_weight_transfer_engine",
            "start": "start_weight_update",
            "update": "update_weights",
        }
        self._engine.collective_rpc(methods[phase], args=info if phase != "start" else ())

    def finish_update(self, version: int) -> "Future[tuple[int, str]]":
        """Serve what was sent, as this version, from now on.

        The acknowledgement: the version the engine now stamps on tokens, and the digest of the
        bytes it loaded ("" where the backend has none).
        """
        return self._do(lambda: self._finish(version))

    def _finish(self, version: int) -> tuple[int, str]:
        self._engine.collective_rpc("finish_weight_update")
        self._engine.set_weight_version(str(version))
        self._version = version
        digests = set(self._engine.collective_rpc("received_digest"))
        if len(digests) != 1:
            raise RuntimeError(f"the workers of this sampler loaded {len(digests)} digests")
        return int(self._engine.get_weight_version()), digests.pop()

    def close(self) -> None:
        def stop() -> None:
            self._stopping = True
            self._engine.engine_core.shutdown()  # ends the core's process where it has one

        self._closing = True
        self._do(stop).result()
        self._thread.join()


@contextlib.contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """vLLM starts with files and sockets in the temporary folder, of which nobody needs the names
    any more once it runs, and which nobody removes when this process is killed. An engine whose
    core is a process of its own goes on to use the folder, so that one is left alone."""
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
        yield
        return
    before, cached = os.environ.get("TMPDIR"), tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    try:
        # `rollout/leftovers.py` removes those whose lock nobody has.
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            yield
    finally:
        tempfile.tempdir = cached
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
        shutil.rmtree(folder, ignore_errors=True)


def _build_engine(args: dict[str, Any]) -> Any:
    # Importing vLLM allocates so much that the collector runs for seconds, finding nothing.
    gc.disable()
    from vllm import EngineArgs
    from vllm.config import WeightTransferConfig
    from vllm.v1.engine.llm_engine import LLMEngine

    gc.freeze()
    transfer = WeightTransferConfig(backend=args.pop("weight_backend"))
    engine = LLMEngine.from_engine_args(EngineArgs(**args, weight_transfer_config=transfer))
    gc.enable()
    return engine


def _load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
