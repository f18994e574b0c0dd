"""Which scheduler a release gets: the one place that reads its configuration for that.

Those that few models ask for are imported with the first that does: they would take a tenth of the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.model_config import InstanceGroup
from edgeserve_agent.serving.scheduling.base import Finish, Scheduler
from edgeserve_agent.serving.scheduling.direct import DirectScheduler
from edgeserve_agent.serving.scheduling.instances import Admission, Group, Instances, Work
from edgeserve_agent.serving.scheduling.limiter import Limiter
from edgeserve_agent.serving.workers import Workers

if TYPE_CHECKING:
    from edgeserve_agent.serving.scheduling.stateful import Stateful
    from edgeserve_agent.serving.served import ServedRelease


class SchedulerBuilder:
    """Makes schedulers that share what models share.

    Args:
        loop: Where they live.
        instances: Calls of one model that run side by side, unless its configuration says another number.
        finish: Takes what came of each call.
        resources: How much there is of the named resources that models share (`--rate-limit-resource`); of one that is
            not named, as much as the neediest loaded model asks for.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        instances: int,
        finish: Finish,
        resources: Mapping[str, int] | None = None,
    ) -> None:
        self._loop = loop
        self._instances = instances
        self._finish = finish
        self._admission = Admission(Limiter(resources))

    def build(self, served: ServedRelease) -> Scheduler:
        """The scheduler that the configuration of `served` asks for.

        Raises:
            InputError: The model cannot be batched, its control inputs or states are not there, or it needs more of a
                resource than there is.
        """
        state = _stateful(served)
        groups: list[Group] = []
        try:
            for config in served.config.instance_group or (InstanceGroup(count=self._instances),):
                limiter = config.rate_limiter
                member = self._admission.limiter.join(served.identity.model, limiter) if limiter.resources else None
                groups.append(Group(idle=config.count, member=member))
            return self._scheduler(served, groups, state)
        except EdgeServeError:
            for group in groups:
                if group.member is not None:
                    self._admission.leave(group.member)
            raise

    def _scheduler(self, served: ServedRelease, groups: list[Group], state: Stateful | None) -> Scheduler:
        config, model, name = served.config, served.model, served.identity.model
        threads = sum(group.idle for group in groups)

        def workers() -> Workers:
            return Workers(self._loop, threads=threads, name=f"run-{name}")

        def instances(is_due: Callable[[], bool], take: Callable[[], Work | None]) -> Instances:
            return Instances(workers(), groups, self._admission, is_due=is_due, take=take)

        if state is not None:
            from edgeserve_agent.serving.scheduling.sequencer import SequenceScheduler

            return SequenceScheduler(
                model,
                name=name,
                state=state,
                instances=threads,
                loop=self._loop,
                make_instances=instances,
                finish=self._finish,
            )
        if config.dynamic_batching is not None:
            from edgeserve_agent.serving.scheduling.batcher import DynamicBatchScheduler

            return DynamicBatchScheduler(
                model,
                name=name,
                config=config.dynamic_batching,
                max_batch_size=config.max_batch_size,
                loop=self._loop,
                make_instances=instances,
                finish=self._finish,
            )
        if all(group.member is None for group in groups):
            return DirectScheduler(model, loop_elements=served.loop_elements, workers=workers, finish=self._finish)
        limited = DirectScheduler(
            model, loop_elements=-1, workers=lambda: Instances(workers(), groups, self._admission), finish=self._finish
        )
        limited.start()
        return limited


def _stateful(served: ServedRelease) -> Stateful | None:
    task = served.opened.task
    if served.config.sequence_batching is None and not (task is not None and task.state):
        return None
    from edgeserve_agent.serving.scheduling.stateful import stateful

    return stateful(served.model.signature, served.config, task)
