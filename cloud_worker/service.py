"""What answers requests: bundles that are loaded, watched and run.

It knows no port: a `CloudWorker` puts it behind one, a replica on Ray Serve
behind Serve's.
"""

import asyncio
import contextlib

from cloud_worker import generations, loading
from cloud_worker.answering import Answering
from cloud_worker.batching import Queue
from cloud_worker.logs import fields, logger
from cloud_worker.running import Runner
from cloud_worker.servicer import SplitServicer
from keras_earlyexit.bundle.watching import Watch
from protos.errors import SplitError
from protos.limits import Limits

# A newer generation may have larger features than those at the start.
_LEAST_MESSAGE_BYTES = 4 << 20
_HOUSEKEEPING_S = 1.0


class Service:
    """Serves bundles. To be used from one event loop.

    Args:
        settings: `Settings`.
        metrics: `Metrics`.
        forwarder: A `Forwarder`, or `None` if there is no further worker.
        trainer: A `Trainer` that trains beside, or `None`.
        runs: Makes what runs requests of a `Runner`, which it is given;
            `None` takes the `Runner` itself.
    """

    def __init__(
        self, settings, metrics, forwarder=None, trainer=None, runs=None
    ):
        self._settings, self.metrics = settings, metrics
        self._forwarder = forwarder
        self._runner = Runner(settings.workers, metrics.ran)
        self._registry = generations.Registry(
            settings.drain_s, settings.max_generations
        )
        self._watch = Watch(settings.bundle)
        self.max_message_bytes = None
        self._reload = asyncio.Event()
        self._keeping = None
        self.servicer = SplitServicer(
            self._registry,
            Answering(
                self._runner if runs is None else runs(self._runner),
                forwarder,
                metrics,
            ),
            metrics,
            max_deadline_s=settings.max_deadline_s,
            raw_input=settings.allow_raw_input,
            trainer=trainer,
        )
        metrics.queued.set_function(lambda: self._runner.rows)
        metrics.generations.set_function(
            lambda: len(self._registry.generations)
        )

    @property
    def generations(self):
        """Names of what is served."""
        return [x.name for x in self._registry.generations]

    @property
    def entrances(self):
        """What requests can name."""
        return self._registry.names

    async def start(self):
        """Loads everything, and looks for changes from now on.

        Raises:
            ValueError: If a bundle is not what it should be.
            OSError: If a file cannot be read.
        """
        loaded = [await self._load(path) for path in self._settings.bundle]
        self.max_message_bytes = max(map(message_bytes, loaded))
        for generation in loaded:
            self._registry.add(generation)
        self._keeping = asyncio.create_task(self._keep_house())

    def reload(self):
        """Looks for changed bundles now."""
        self._reload.set()

    async def close(self):
        """Ends what runs; no request may come any more."""
        self._keeping.cancel()
        self._runner.close()
        if self._forwarder is not None:
            await asyncio.to_thread(self._forwarder.close)

    async def _load(self, source):
        """Loads a bundle and runs it once, beside what is served."""
        settings = self._settings
        bundle = await asyncio.to_thread(
            loading.load, source, settings.num_threads, settings.workers
        )
        generation = generations.build(
            source,
            bundle,
            max_message_bytes=self.max_message_bytes,
            max_batch=settings.max_batch,
            queue=self._queue,
            raw_input=settings.allow_raw_input,
        )
        await asyncio.to_thread(loading.warm_up, generation)
        await self._greet(generation)
        return generation

    async def _greet(self, generation):
        if generation.bundle.is_last:
            return
        reason = "--forward names none"
        if self._forwarder is not None:
            try:
                await asyncio.to_thread(self._forwarder.greet, generation)
                return
            except SplitError as error:
                reason = str(error)
        logger.warning(
            "no further worker: what does not leave here is answered by the "
            "last exit",
            extra=fields(generation=generation.name, reason=reason),
        )

    def _queue(self):
        settings = self._settings
        return Queue(
            settings.max_queue,
            settings.max_batch,
            settings.max_delay_ms / 1000,
        )

    async def _keep_house(self):
        """Loads what has changed, drops what is not used any more."""
        every_s = self._settings.reload_every_s
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._reload.wait(), every_s or _HOUSEKEEPING_S
                )
            asked, _ = self._reload.is_set(), self._reload.clear()
            if asked or every_s:
                changed = await asyncio.to_thread(self._watch.changed, asked)
                for source in changed:
                    await self._replace(source)
            await self._drop(self._registry.expire())

    async def _replace(self, source):
        try:
            generation = await self._load(source)
        # Whatever is wrong with it, the old one goes on.
        except Exception as error:
            self.metrics.reloads.labels("failed").inc()
            logger.error(
                "not reloaded",
                extra=fields(source=str(source), reason=str(error)),
            )
            return
        await self._drop(self._registry.add(generation))
        self.metrics.reloads.labels("loaded").inc()
        logger.info(
            "reloaded",
            extra=fields(
                source=str(source),
                generation=generation.name,
                entrances=self._registry.names,
            ),
        )

    async def _drop(self, gone):
        for generation in gone:
            logger.info("dropped", extra=fields(generation=generation.name))
            if self._forwarder is not None:
                await asyncio.to_thread(self._forwarder.forget, generation)


def message_bytes(generation):
    """Bytes of the largest message, features or answers, of a generation."""
    sizes = [_LEAST_MESSAGE_BYTES]
    for entrance in generation.entrances.values():
        sizes.append(entrance.limits.max_message_bytes)
        answers = [
            spec
            for entry in entrance.bundle.manifest.stages
            for spec in entry.outputs
            if spec.name == "prediction"
        ]
        rows = entrance.limits.max_rows
        sizes.append(Limits.for_specs(answers, rows).max_message_bytes)
    return max(sizes)
