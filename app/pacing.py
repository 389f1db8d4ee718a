"""How fast mail goes, for all workers together: rates as generic cell rates, connections as leases that end with their worker (S-15).

What is counted is in Redis, by Redis' own clock, and one call answers for a whole batch of mail. Nothing of it is worth keeping: a meter
that was emptied begins empty, not full, and while Redis is away each worker goes at its share of the rate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import redis

from app.queue import client_of
from app.rules.lanes import BURST, Meter, Pace

HORIZON = 0.5  # seconds ahead that slots are given out for: what is claimed ahead goes before its facts are old
LEASE = 10.0  # seconds; a worker that lives asks much more often
REMEMBERED = 86_400  # seconds: what nobody asked about for a day is forgotten, and begins empty
BREAK = 1.0  # seconds between attempts to reach a Redis that is away
NO_LEASE = 1.0  # seconds until somebody without a connection asks again

PREFIX = "nurture:pace"

log = logging.getLogger("nurture.deliver")


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch over one transport. `lanes` are the providers that have limits; `letters` names, in their order, the provider of each
    message. `connections` is how many this worker could use."""

    transport: str
    pace: Pace
    connections: int
    lanes: Mapping[str, Pace] = field(default_factory=dict)
    letters: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    """`slots` has for each message the seconds after which it may go, None for one that may not go within the horizon; `waits` the
    seconds after which those may be asked for again. `connections` are this worker's, `lanes` those towards each limited provider.
    `wait` is how long there is no use in asking for more, as the transport itself is busy."""

    connections: int
    lanes: Mapping[str, int]
    slots: Sequence[float | None]
    waits: Sequence[float]
    wait: float = 0.0


class Pacer:
    """Asks for one worker. No method raises for what Redis does or does not do. `workers` says among how many a rate is shared while Redis
    cannot be asked. One thread at a time."""

    def __init__(
        self, url: str | None, worker_id: UUID, workers: Callable[[], int] = lambda: 1, *, prefix: str = PREFIX, lease: float = LEASE
    ):
        self._lease = lease
        self._worker, self._workers, self._prefix = str(worker_id), workers, prefix
        self._client = client_of(url) if url else None
        self._script = self._client.register_script(_ASK) if self._client else None
        self._away_until, self._said_at = 0.0, float("-inf")
        self._alone = _Alone()

    def ask(self, asked: Asked) -> Granted:
        """Slots for the messages, within the limits of the transport and of their lanes, and leases of connections; one round trip."""
        if not asked.pace.limits and not asked.lanes:
            return Granted(asked.connections, {}, [0.0] * len(asked.letters), [0.0] * len(asked.letters))
        if self._script is not None and time.monotonic() >= self._away_until:
            try:
                return self._shared(asked)
            except redis.RedisError as error:
                self._away_until = time.monotonic() + BREAK
                if time.monotonic() > self._said_at + 60:
                    self._said_at = time.monotonic()
                    log.warning("Redis does not answer, this worker keeps to its share of the rates: %s", error)
        return self._alone.ask(asked, max(1, self._workers()), time.monotonic())

    def release(self, transport: str, providers: Sequence[str] = ()) -> None:
        """Gives back the leases of a transport and its lanes, so that others need not wait for their end."""
        if self._client is None or time.monotonic() < self._away_until:
            return
        try:
            pipe = self._client.pipeline(transaction=False)
            for key in self._keys(transport, providers)[1::2]:
                pipe.hdel(key, self._worker)
            pipe.execute()
        except redis.RedisError as error:
            log.info("leases of %s were not given back and end by themselves: %s", transport, error)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _keys(self, transport: str, providers: Sequence[str]) -> list[str]:
        return [f"{self._prefix}:{kind}:{{{transport}}}:{place}" for place in ("", *providers) for kind in ("rate", "leases")]

    def _shared(self, asked: Asked) -> Granted:
        names = list(asked.lanes)
        index = {name: number for number, name in enumerate(names, 1)}
        arguments: list = [self._worker, int(self._lease * 1e6), int(HORIZON * 1e6), int(BURST * 1e6), REMEMBERED, asked.connections]
        for pace in (asked.pace, *asked.lanes.values()):
            arguments += [round(1e6 / pace.rate) if pace.rate else 0, pace.connections or 0]
        arguments += [index.get(name, 0) for name in asked.letters] if names else [len(asked.letters)]
        connections, busy, *numbers = self._script(keys=self._keys(asked.transport, names), args=arguments)
        if not names:
            return _even(connections, busy, *numbers, asked)
        lanes, numbers = numbers[: len(names)], numbers[len(names) :]
        slots = [number / 1e6 if number >= 0 else None for number in numbers]
        waits = [0.0 if number >= 0 else -number / 1e6 for number in numbers]
        return Granted(connections, dict(zip(names, lanes, strict=True)), slots, waits, busy / 1e6)


def _even(connections: int, busy: int, room: int, first: int, asked: Asked) -> Granted:
    """Without lanes the slots follow each other at the transport's rate: `room` of them, the first after `first` µs."""
    count, step = len(asked.letters), 1 / asked.pace.rate if asked.pace.rate else 0.0
    start = first / 1e6
    slots: list[float | None] = [max(0.0, start + number * step) for number in range(room)]
    refused = [max(start + room * step, 0.0) if connections else NO_LEASE] * (count - room)
    return Granted(connections, {}, slots + [None] * (count - room), [0.0] * room + refused, busy / 1e6)


class _Alone:
    """The same without anybody to share with: each limit divided by the number of workers."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def ask(self, asked: Asked, workers: int, now: float) -> Granted:
        whole = self._meter(asked.transport, asked.pace, workers, now)
        lanes = {name: self._meter(f"{asked.transport}:{name}", pace, workers, now) for name, pace in asked.lanes.items()}
        shares = {name: _share(pace.connections, asked.connections, workers) for name, pace in asked.lanes.items()}
        slots: list[float | None] = []
        waits: list[float] = []
        for name in asked.letters:
            meters = [one for one in (whole, lanes.get(name)) if one is not None]
            slot = max((one.slot(now) for one in meters), default=now) - now
            if slot > HORIZON:
                slots.append(None)
                waits.append(slot)
            elif shares.get(name) == 0:
                slots.append(None)
                waits.append(NO_LEASE)
            else:
                for one in meters:
                    one.take(now)
                slots.append(slot)
                waits.append(0.0)
        busy = max(0.0, whole.slot(now) - now - HORIZON) if whole is not None else 0.0
        return Granted(_share(asked.pace.connections, asked.connections, workers), shares, slots, waits, busy)

    def _meter(self, key: str, pace: Pace, workers: int, now: float) -> Meter | None:
        if pace.rate is None:
            return None
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter(pace.rate / workers, now)
        meter.pace(pace.rate / workers)
        return meter


def _share(limit: int | None, wanted: int, workers: int) -> int:
    return wanted if limit is None else min(wanted, max(1, limit // workers))


# KEYS: for the transport and then for each lane, the meter and the leases. ARGV: the worker, the life of a lease, the horizon, the burst
# (µs), how long to remember (s), the connections it could use; for the transport and each lane the interval of the rate (µs) and the limit
# of connections, 0 for none; for each message the number of its lane, 0 for none, or without lanes how many messages there are.
# Gives: the connections granted, the µs for which the transport has no slot, the connections of each lane, and for each message the µs
# after which it may go, or the negated µs to wait; without lanes how many may go and the µs after which the first may.
_ASK = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local worker, life, horizon, burst = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local remember, wanted = ARGV[5], tonumber(ARGV[6])
local places = #KEYS / 2
local intervals, ahead, leases = {}, {}, {}

local function lease(key, limit, want)
  if limit == 0 then return want end
  local all, others, taken, workers = redis.call('hgetall', key), 0, 0, 1
  local sum = want
  for i = 1, #all, 2 do
    local w, g, ends = string.match(all[i + 1], '(%d+):(%d+):(%d+)')
    if tonumber(ends) <= now then
      redis.call('hdel', key, all[i])
    elseif all[i] ~= worker then
      workers, sum, taken = workers + 1, sum + w, taken + g
    end
  end
  local fair = math.max(1, math.floor(limit / workers))
  local grant = math.min(want, limit)
  if sum > limit then grant = math.min(grant, math.max(fair, limit - (sum - want))) end
  grant = math.max(0, math.min(grant, limit - taken))
  redis.call('hset', key, worker, string.format('%d:%d:%.0f', want, grant, now + life))
  redis.call('expire', key, math.ceil(life / 1000000) + 1)
  return grant
end

for p = 1, places do
  local interval, limit = tonumber(ARGV[5 + 2 * p]), tonumber(ARGV[6 + 2 * p])
  intervals[p] = interval
  if interval > 0 then
    local kept = redis.call('get', KEYS[2 * p - 1])
    ahead[p] = kept and tonumber(kept) or (now + burst + interval)
  end
  leases[p] = lease(KEYS[2 * p], limit, wanted)
end

local answer = {leases[1], 0}
for p = 2, places do answer[p + 1] = leases[p] end
if places == 1 then
  local room, first = tonumber(ARGV[9]), 0
  if leases[1] == 0 then room = 0 end
  if intervals[1] > 0 then
    local from = math.max(ahead[1], now)
    first = from - burst - now
    room = math.max(0, math.min(room, math.floor((horizon - first) / intervals[1]) + 1))
    if room > 0 then ahead[1] = from + room * intervals[1] end
  end
  answer[3], answer[4] = room, first
end
for i = 7 + 2 * places, places > 1 and #ARGV or 0 do
  local mine = tonumber(ARGV[i]) + 1
  local slot = now
  if intervals[1] > 0 then slot = math.max(slot, ahead[1] - burst) end
  if mine > 1 and intervals[mine] > 0 then slot = math.max(slot, ahead[mine] - burst) end
  if slot - now > horizon then
    answer[#answer + 1] = now - slot
  elseif leases[mine] == 0 then
    answer[#answer + 1] = -1000000
  else
    if intervals[1] > 0 then ahead[1] = math.max(ahead[1], now) + intervals[1] end
    if mine > 1 and intervals[mine] > 0 then ahead[mine] = math.max(ahead[mine], now) + intervals[mine] end
    answer[#answer + 1] = slot - now
  end
end
if intervals[1] > 0 then answer[2] = math.max(0, ahead[1] - burst - horizon - now) end
for p = 1, places do
  if intervals[p] > 0 then redis.call('set', KEYS[2 * p - 1], string.format('%.0f', ahead[p]), 'ex', remember) end
end
return answer
"""
