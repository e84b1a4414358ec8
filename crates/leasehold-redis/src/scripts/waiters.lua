-- The list of waiters, a fragment before every script that acquires.
--
-- `base` is the prefix of the keys of waiters. The score of a waiter in `writers`, `waiters`
-- (readers) or `queue` (permits) is the time in ms at which its registration ends. Its score in
-- `order` is the time in us at which it began to wait for a lock. A waiter renews its registration
-- each time it asks.
--
-- LIFE, in ms: the life of a registration. It outlives a waiter that was killed by this time,
-- whatever the TTL. Waiters retry at least every 2 s (REFRESH in backend.rs), so that two requests
-- may be lost or late. A shorter life would cost more requests. OFFER, in ms: the time for which a
-- free lock is offered to a waiter before others pass it over. A waiter that polls retries every 57
-- ms, and one that is notified retries after one round trip: both are in time. A killed waiter
-- costs this time once.
local LIFE, OFFER = 5000, 100

-- GETEX without options is a GET that counts as a write; of a sorted set it is an error, of nothing
-- it is false.
local function millis(time)
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Returns a refusal: the reason, the ms until the next attempt is useful, the value of the holder,
-- and the time at which its lock expires (-1: never). By the last two a waiter sees whether
-- anything has changed since its last attempt.
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
local function register_in(list, waiter, now)
  redis.call('ZADD', list, now + LIFE, waiter)
  redis.call('PEXPIRE', list, LIFE)
end

-- Registers a waiter for a lock, at its earlier place or at the end.
local function register(base, kind, waiter, place)
  local order, time = base .. 'order', redis.call('TIME')
  register_in(base .. kind, waiter, millis(time))
  redis.call('ZADD', order, 'NX', place or time[1] * 1000000 + time[2], waiter)
  redis.call('PEXPIRE', order, LIFE)
end

-- Returns the end of the registration of a waiter for a lock, and its list.
local function ending(base, waiter)
  for _, kind in ipairs({'writers', 'waiters'}) do
    local score = redis.call('ZSCORE', base .. kind, waiter)
    if score then
      return score + 0, base .. kind
    end
  end
  return 0
end

-- Returns whether a waiter whose registration ends then has made no attempt for OFFER and was not
-- offered the lock yet.
local function is_idle(ends, now)
  return ends > now + OFFER and ends <= now + LIFE - OFFER
end

-- Offers a free lock to the waiters before this one. `ends` is the end of the registration of the
-- first of them. Returns the ms until the next attempt.
--
-- The list is read only if the first waiter is idle: a release notifies all waiters, and each of
-- them comes here.
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

-- Returns the end of the registration of the earliest other waiter, or nil; and the place of this
-- waiter if it was the first, in which case it is removed from the order. That is one command, and
-- not a read-only one.
local function yield_to_earlier(base, waiter)
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

-- Returns the end of the registration of a writer before this reader, or nil. Every writer is
-- before a reader that is not registered yet.
local function writer_ahead(base, reader)
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

-- Removes the registration of a waiter that has acquired the lock. `place` means that it is no
-- longer in `order`.
local function deregister(base, kind, waiter, place)
  redis.call('ZREM', base .. kind, waiter)
  if not place then
    redis.call('ZREM', base .. 'order', waiter)
  end
end

