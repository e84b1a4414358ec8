-- The list of waiters: stands before every script that acquires.
--
-- `base` is what the keys of waiters begin with. The score of a waiter in `writers`, `waiters`
-- (readers) or `queue` (permits) is the time in ms at which its registration ends. Its score in
-- `order` is the time in us at which it began to wait for a lock. A waiter renews its registration
-- each time it asks.
--
-- LIFE, in ms: how long a registration outlives a waiter that was killed, whatever the TTL. Waiters
-- ask every 2 s at least (REFRESH in backend.rs), so that two requests may be lost or late. A
-- shorter life would cost more requests. OFFER, in ms: how long a waiter has to take a lock that is
-- free before others pass it over. A waiter that polls asks every 57 ms, and one that is notified
-- asks after one round trip: both take their turn. A killed one costs this once.
local LIFE, OFFER = 5000, 100

-- GETEX without options is a GET that counts as a write; of a sorted set it is an error, of nothing
-- it is false.
local function millis(time)
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What a refusal says: why, the ms until trying again makes sense, and what it was refused for, by
-- which the waiter tells whether anything has changed when it asks again: who holds the lock, and
-- until when (-1: no end).
local function refusal(why, left, lock, ends)
  local holder = redis.pcall('GET', lock)
  if type(holder) ~= 'string' then
    holder = ''
  end
  if not ends then
    ends = left < 0 and -1 or millis(redis.call('TIME')) + left
  end
  return {why, left, holder, ends}
end

-- Registers the waiter on this list for LIFE.
local function enlist(list, waiter, now)
  redis.call('ZADD', list, now + LIFE, waiter)
  redis.call('PEXPIRE', list, LIFE)
end

-- Registers a waiter for a lock, where it stood or at the end.
local function register(base, kind, waiter, place)
  local order, time = base .. 'order', redis.call('TIME')
  enlist(base .. kind, waiter, millis(time))
  redis.call('ZADD', order, 'NX', place or time[1] * 1000000 + time[2], waiter)
  redis.call('PEXPIRE', order, LIFE)
end

-- When the registration of a waiter for a lock ends, and on which list it is.
local function ending(base, waiter)
  for _, kind in ipairs({'writers', 'waiters'}) do
    local score = redis.call('ZSCORE', base .. kind, waiter)
    if score then
      return score + 0, base .. kind
    end
  end
  return 0
end

-- Whether a waiter whose registration ends then has not asked for OFFER, and was not offered the
-- lock yet.
local function is_idle(ends, now)
  return ends > now + OFFER and ends <= now + LIFE - OFFER
end

-- Offers a free lock to the waiters that came before this one. The registration of the first of
-- them ends then. Returns the ms after which to ask again.
--
-- The others are looked at only if the first is idle: a release wakes all, and each of them that
-- asks comes here.
local function offer(base, waiter, ends)
  local now = millis(redis.call('TIME'))
  if is_idle(ends, now) then
    for _, member in ipairs(redis.call('ZRANGE', base .. 'order', 0, 7)) do
      if member == waiter then
        break
      end
      local theirs, list = ending(base, member)
      if is_idle(theirs, now) then
        redis.call('ZADD', list, now + OFFER, member)
      end
    end
  end
  return math.max(math.min(ends - now, OFFER), 1)
end

-- Returns when the registration of the waiter ends that came earlier and goes first, or nil; and
-- the place of this one if it was the first: it is struck off then. That is one command, and not a
-- read-only one.
local function take_turn(base, waiter)
  local order = base .. 'order'
  local first = redis.pcall('ZPOPMIN', order)
  if first[1] == waiter then
    return nil, first[2]
  elseif not first[1] then
    return nil, nil
  end
  redis.pcall('ZADD', order, first[2], first[1])
  if redis.call('PTTL', order) < 0 then
    redis.call('PEXPIRE', order, LIFE)
  end
  local now = millis(redis.call('TIME'))
  for _, member in ipairs(redis.call('ZRANGE', order, 0, 7)) do
    if member == waiter then
      break
    end
    local ends, list = ending(base, member)
    if ends > now then
      return ends, nil
    end
    redis.call('ZREM', order, member)
    if list then
      redis.call('ZREM', list, member)
    end
  end
  return nil, nil
end

-- Returns when the registration of a writer ends that goes before this reader: one that came
-- earlier, or any if this reader is not yet registered. Else nil.
local function behind_a_writer(base, reader)
  local writers, order = base .. 'writers', base .. 'order'
  if not redis.pcall('GETEX', writers) then
    return nil
  end
  redis.call('ZREMRANGEBYSCORE', writers, '-inf', millis(redis.call('TIME')))
  local all, place = redis.call('ZRANGE', writers, 0, -1, 'WITHSCORES'), redis.call('ZSCORE', order, reader)
  for i = 1, #all, 2 do
    local since = place and redis.call('ZSCORE', order, all[i])
    if not since or since + 0 < place + 0 then
      return all[i + 1] + 0
    end
  end
  return nil
end

-- Strikes off a waiter that has the lock now. `place`: it is no longer in `order`.
local function strike_off(base, kind, waiter, place)
  redis.call('ZREM', base .. kind, waiter)
  if not place then
    redis.call('ZREM', base .. 'order', waiter)
  end
end

