"""Doorbells: RQ jobs that say "look at partition 7" or "there is mail to send", never what to do.

Postgres is the truth: a bell that is lost, doubled or late changes nothing but the moment of the work. So a Redis that is down,
frozen or emptied never raises here and holds nobody up, and `tick`, called every second, rings for whatever is pending or due.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import now as utc_now
from rq.utils import utcformat
from sqlalchemy import Connection, text

log = logging.getLogger("nurture.queue")

ADVANCE, DELIVER, CHORES = "advance", "deliver", "chores"
JOB_SECONDS = 120  # a deliver job only wakes the sender, whose dots may take longer
BREAK_SECONDS = 1.0
CONNECT_SECONDS = 0.1
ANSWER_SECONDS = 0.2
# Forgets a bell nobody has rung for long; nothing depends on it.
FORGET_SECONDS = 3600

# A bell is coalesced while its last job still waits in the queue. KEYS: the queue, then the bells; gives 1 for each that waits.
_WAITING = """
local found = {}
for i = 2, #KEYS do
  local last = redis.call('get', KEYS[i])
  found[i - 1] = (last and redis.call('lpos', KEYS[1], last)) and 1 or 0
end
return found
"""

# KEYS: the set of queues, the queue, the bells; ARGV: how long to remember a bell, then for each bell the job's id, its key and its
# fields, counted. Two rings at the same instant may both get through, which only doubles a look.
_PUSH = """
local at = 2
for i = 3, #KEYS do
  local id, key, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  redis.call('hset', key, unpack(ARGV, at + 3, at + 2 + count))
  redis.call('rpush', KEYS[2], id)
  redis.call('set', KEYS[i], id, 'ex', ARGV[1])
  at = at + 3 + count
end
redis.call('sadd', KEYS[1], KEYS[2])
"""


class Bells:
    """Rings for work. No method raises for what Redis does or does not do, and none takes longer than 0.3 seconds.

    `url` None rings nothing: then whoever works looks for himself every second (see `worker.py`). Threads may share one.
    """

    def __init__(self, url: str | None):
        self._client = client_of(url) if url else None
        if self._client:
            self._waiting, self._push = self._client.register_script(_WAITING), self._client.register_script(_PUSH)
        self._fields: dict[str, list] = {}
        self._silent_until = 0.0
        self._said_at = float("-inf")

    def advance(self, partitions: Iterable[int]) -> None:
        """Look at these partitions."""
        self._ring(ADVANCE, [(f"advance:{number}", "app.jobs.advance", (number,)) for number in sorted(set(partitions))])

    def deliver(self) -> None:
        """There is mail to send."""
        self._ring(DELIVER, [("deliver", "app.jobs.deliver", ())])

    def notify(self) -> None:
        """There are alerts or webhooks to send, or something to tell the operators."""
        self._ring(DELIVER, [("notify", "app.jobs.notify", ())])

    def assess(self) -> None:
        """The health of some accounts is to be assessed."""
        self._ring(CHORES, [("assess", "app.jobs.assess", ())])

    def settle(self) -> None:
        """Some clicks are old enough to be judged for good, or unknown messages have been waited for long enough."""
        self._ring(CHORES, [("settle", "app.jobs.settle", ())])

    def inbound(self) -> None:
        """Mail that came in is to be read."""
        self._ring(CHORES, [("inbound", "app.jobs.inbound", ())])

    def fetch(self) -> None:
        """A mailbox is to be looked into."""
        self._ring(CHORES, [("fetch", "app.jobs.fetch", ())])

    def hooks(self) -> None:
        """Mail providers have told something."""
        self._ring(CHORES, [("hooks", "app.jobs.hooks", ())])

    def brakes(self) -> None:
        """Complaints and bounces are to be counted."""
        self._ring(CHORES, [("brakes", "app.jobs.brakes", ())])

    def recover(self) -> None:
        """Some messages, alerts or webhooks are claimed by a worker that is dead."""
        self._ring(CHORES, [("recover", "app.jobs.recover", ())])

    def tidy(self) -> None:
        """Somebody is to be erased, or the night's retention is due."""
        self._ring(CHORES, [("tidy", "app.jobs.tidy", ())])

    def _ring(self, name: str, bells: Sequence[tuple[str, str, tuple]]) -> None:
        if not bells or self._client is None or time.monotonic() < self._silent_until:
            return
        queue_key = Queue.redis_queue_namespace_prefix + name
        keys = [f"nurture:bell:{bell}" for bell, _, _ in bells]
        try:
            waiting = self._waiting(keys=[queue_key, *keys])
            silent = [index for index, waits in enumerate(waiting) if not waits]
            if silent:
                arguments = [FORGET_SECONDS]
                for index in silent:
                    arguments += self._job(name, *bells[index])
                self._push(keys=[Queue.redis_queues_keys, queue_key, *(keys[index] for index in silent)], args=arguments)
        except redis.RedisError as error:
            self._silent_until = time.monotonic() + BREAK_SECONDS
            if time.monotonic() > self._said_at + 60:
                self._said_at = time.monotonic()
                log.warning("Redis does not answer, bells are silent: %s", error)

    def _job(self, name: str, bell: str, function: str, args: tuple) -> list:
        fields = self._fields.get(bell)
        if fields is None:
            fields = self._fields[bell] = self._template(name, bell, function, args)
        job_id, at = str(uuid4()), utcformat(utc_now())
        return [job_id, Job.key_for(job_id), len(fields) + 4, *fields, "created_at", at, "enqueued_at", at]

    def _template(self, name: str, bell: str, function: str, args: tuple) -> list:
        # RQ's own words for this job, made once: making them for every ring would cost a batch of events as much as storing it.
        queue = Queue(name, connection=self._client, serializer=JSONSerializer)
        job = queue.create_job(function, args, timeout=JOB_SECONDS, result_ttl=0, failure_ttl=60, description=bell, status=JobStatus.QUEUED)
        job.origin = name
        words = job.to_dict()
        return [part for field in words if field not in ("created_at", "enqueued_at") for part in (field, words[field])]


def client_of(url: str) -> redis.Redis:
    """A client that is never waited for longer than 0.3 seconds."""
    return redis.Redis.from_url(
        url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), 0), retry_on_error=[]
    )


@dataclass(frozen=True, slots=True)
class Due:
    """What can be worked on now."""

    partitions: tuple[int, ...]
    messages: bool
    assessments: bool
    hits: bool
    claims: bool
    effects: bool = False
    mails: bool = False
    mailboxes: bool = False
    hooks: bool = False
    brakes: bool = False
    tidying: bool = False


def tick(conn: Connection, bells: Bells, now: datetime) -> Due:
    """Rings for whatever is pending or due at `now`, and returns what that is. Safe to call from any number of processes.

    Costs a few index probes per partition, whatever the size of the tables.
    """
    due = find_due(conn, now)
    ring(bells, due)
    return due


def ring(bells: Bells, due: Due) -> None:
    """Rings the bells of what is due. `bells` may be anything with the methods of Bells."""
    bells.advance(due.partitions)
    if due.messages:
        bells.deliver()
    if due.effects:
        bells.notify()
    if due.claims:
        bells.recover()
    if due.hooks:
        bells.hooks()
    if due.hits:
        bells.settle()
    if due.assessments:
        bells.assess()
    if due.mails:
        bells.inbound()
    if due.mailboxes:
        bells.fetch()
    if due.brakes:
        bells.brakes()
    if due.tidying:
        bells.tidy()


def find_due(conn: Connection, now: datetime) -> Due:
    """What is pending or due at `now`, without ringing."""
    partitions = conn.execute(_PARTITIONS, {"now": now}).scalars().all()
    return Due(tuple(partitions), **conn.execute(_REST, {"now": now}).mappings().one())


# What `advance` would take: it leaves out accounts behind a parked occurrence and the timers of paused campaigns. A partition without
# parked occurrences is answered by one probe of an index.
_PARTITIONS = text("""
    with numbers as (
        select n as partition, exists (select from parked k where k.partition = n and k.released_at is null) as parks,
            array(select id from campaign where mode = 'paused') as paused
        from installation, generate_series(0, partitions - 1) n
    )
    select partition from numbers p
    where exists (
        select from event_pending e
        where e.partition = p.partition and (not p.parks or not exists (
            select from parked k
            where k.partition = e.partition and k.released_at is null
              and (k.account_key = e.account_key or (k.account_key is null and e.account_key is null and k.contact_key = e.contact_key))
        ))
    )
    or exists (
        select from enrollment e
        where e.partition = p.partition and e.state = 'active' and e.due_at <= :now
          and e.campaign_id <> all(p.paused) and (not p.parks or not exists (
            select from parked k join account a on a.external_id = k.account_key
            where k.partition = e.partition and k.released_at is null and a.id = e.account_id
        ))
    )
    or exists (
        select from account a
        where a.partition = p.partition and a.due_at <= :now and (not p.parks or not exists (
            select from parked k where k.partition = a.partition and k.released_at is null and k.account_key = a.external_id
        ))
    )
    order by partition
""")

# A worker is dead when its heartbeat is; the exact limit belongs to the recovery, this only rings for it.
_REST = text("""
    select
        exists (select from message where state = 'due' and due_at <= :now) as messages,
        exists (select from account where assess_at <= :now) or exists (select from unassessed where assess_at <= :now) as assessments,
        exists (select from hit where settled_at is null and settle_at <= :now)
        or exists (select from hit where review_at <= :now) or exists (
            select from message m
            where m.state = 'unknown' and (m.unknown_until is null or m.unknown_until <= :now)
        ) as hits,
        exists (
            select from message m left join worker w on w.id = m.worker_id
            where m.state in ('claimed', 'in_dot')
              and (w.id is null or w.stopped_at is not null or w.heartbeat_at < now() - interval '15 seconds')
        ) or exists (
            select from effect f left join worker w on w.id = f.worker_id
            where f.state in ('claimed', 'on_wire')
              and (w.id is null or w.stopped_at is not null or w.heartbeat_at < now() - interval '15 seconds')
        ) as claims,
        exists (select from effect where state = 'due' and due_at <= :now)
            or exists (select from transport where untold) or exists (select from lane where untold) as effects,
        exists (select from inbound_mail where state = 'waiting') as mails,
        exists (select from mailbox where due_at <= :now and (leased_until is null or leased_until < :now)) as mailboxes,
        exists (select from hook_call where state = 'waiting') as hooks,
        exists (select from installation where brakes_at is null or brakes_at <= :now)
            and (exists (select from delivery_event where kind in ('bounced', 'complained', 'rejected') and at > :now - interval '7 days')
                or exists (select from brake where released_at is null)) as brakes,
        exists (select from erasure where finished_at is null) or (
            extract(hour from cast(:now as timestamptz) at time zone 'utc') >= 3 and exists (select from account) and not exists (
              select from retention_run r where r.day = (cast(:now as timestamptz) at time zone 'utc')::date and r.finished_at is not null)
        ) as tidying
""")
