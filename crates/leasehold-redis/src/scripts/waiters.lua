-- The list of waiters: stands before every script that acquires.
--
-- `base` is what the keys of waiters begin with. The score of a waiter in `writers`, `waiters` (readers) or `queue`
-- (permits) is the time in ms at which its registration ends. Its score in `order` is the time in us at which it began to
-- wait for a lock. A waiter renews its registration each time it asks.
--
-- LIFE, in ms: how long a registration outlives a waiter that was killed, whatever the TTL. Waiters ask every 2 s at least
-- (REFRESH in backend.rs), so that two requests may be lost or late. A shorter life would cost more requests.
-- OFFER, in ms: how long a waiter has to take a lock that is free before others pass it over. A waiter that polls asks
-- every 57 ms, and one that is notified asks after one round trip: both take their turn. A killed one costs this once.
local LIFE, OFFER = 5000, 100

-- GETEX without options is a GET that counts as a write; of a sorted set it is an error, of nothing it is false.
local function millis(time)
  return time[1] * 1000 + math.floor(time[2] / 1000)
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

-- Cuts a registration that ends then to OFFER, unless its waiter asked within the last OFFER. Returns the ms for which
-- the waiter is waited for.
local function offer_to(list, waiter, ends, now)
  if ends > now + OFFER and ends <= now + LIFE - OFFER then
    redis.call('ZADD', list, now + OFFER, waiter)
  end
  return math.min(ends - now, OFFER)
end

-- Offers a free lock to the waiters that came before this one. Returns the ms after which to ask again.
local function offer(base, waiter)
  local now, most = millis(redis.call('TIME')), 1
  for _, member in ipairs(redis.call('ZRANGE', base .. 'order', 0, 7)) do
    if member == waiter then
      break
    end
    local ends, list = ending(base, member)
    if ends > now then
      most = math.max(most, offer_to(list, member, ends, now))
    end
  end
  return most
end

-- Returns whether a waiter that came earlier goes first, and the place of this one if it was the first: it is struck off
-- then. That is one command, and not a read-only one.
local function take_turn(base, waiter)
  local order = base .. 'order'
  local first = redis.pcall('ZPOPMIN', order)
  if first[1] == waiter then
    return false, first[2]
  elseif not first[1] then
    return false, nil
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
      return true, nil
    end
    redis.call('ZREM', order, member)
    if list then
      redis.call('ZREM', list, member)
    end
  end
  return false, nil
end

-- Returns whether a writer goes before this reader: one that came earlier, or any if this reader is not yet registered.
local function behind_a_writer(base, reader)
  local writers, order = base .. 'writers', base .. 'order'
  if not redis.pcall('GETEX', writers) then
    return false
  end
  redis.call('ZREMRANGEBYSCORE', writers, '-inf', millis(redis.call('TIME')))
  local place
  for _, writer in ipairs(redis.call('ZRANGE', writers, 0, -1)) do
    place = place or redis.call('ZSCORE', order, reader)
    local since = redis.call('ZSCORE', order, writer)
    if not place or not since or since + 0 < place + 0 then
      return true
    end
  end
  return false
end

-- Strikes off a waiter that has the lock now. `place`: it is no longer in `order`.
local function strike_off(base, kind, waiter, place)
  redis.call('ZREM', base .. kind, waiter)
  if not place then
    redis.call('ZREM', base .. 'order', waiter)
  end
end

