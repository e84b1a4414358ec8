-- Lists of waiters. The score of a waiter is the time in ms at which its registration ends. A
-- waiter renews its registration each time it asks.

-- The life of a registration, in ms. A killed waiter stays registered for this long, whatever the
-- TTL. Waiters retry at least every 2 s (REFRESH in acquire.rs), so that two requests may be
-- lost or late. A shorter life would cost more requests.
local LIFE = 5000
-- The time in ms for which a free lock is offered to a waiter before others pass it over. A waiter
-- that polls retries every 57 ms, and one that is notified after one round trip: both are in time.
-- A killed waiter costs this time once.
local OFFER = 100

-- Registers a waiter on this list, or renews its registration.
local function register(list, waiter)
  redis.call('ZADD', list, NOW + LIFE, waiter)
  redis.call('PEXPIRE', list, LIFE)
end

-- Returns whether a waiter whose registration ends then has made no attempt for OFFER and was not
-- offered the lock yet.
local function is_idle(ends)
  return ends > NOW + OFFER and ends <= NOW + LIFE - OFFER
end

-- Offers the lock to a waiter: its registration ends with the offer.
local function offer_to(list, waiter)
  redis.call('ZADD', list, NOW + OFFER, waiter)
end

-- The waiters for a lock, as distinct from those for a permit. `lists` are the keys of three sorted
-- sets: `writers` and `readers` have the registrations; `order` has for each of them the time in us
-- at which it began to wait.

-- The number of waiters at the head of `order` that one script looks at.
local HEAD = 8

-- Registers a waiter, at its earlier place in the order or at the end.
local function enqueue(lists, list, waiter, place)
  register(list, waiter)
  redis.call('ZADD', lists.order, 'NX', place or NOW_MICROS, waiter)
  redis.call('PEXPIRE', lists.order, LIFE)
end

-- Removes a waiter that has acquired the lock. `place` means that it is not in the order any more.
local function dequeue(lists, list, waiter, place)
  redis.call('ZREM', list, waiter)
  if not place then
    redis.call('ZREM', lists.order, waiter)
  end
end

-- Returns the end of a waiter's registration and its list, or 0.
local function registration_of(lists, waiter)
  for _, list in ipairs({lists.writers, lists.readers}) do
    local ends = redis.call('ZSCORE', list, waiter)
    if ends then
      return ends + 0, list
    end
  end
  return 0
end

-- Returns the waiters at the head of the order, as far as this one.
local function waiters_before(lists, waiter)
  local before = {}
  for _, other in ipairs(redis.call('ZRANGE', lists.order, 0, HEAD - 1)) do
    if other == waiter then
      break
    end
    before[#before + 1] = other
  end
  return before
end

-- Returns the end of the registration of the earliest other waiter, or nil; and the place of this
-- waiter if it was the first, in which case it is removed from the order. That is one command, and
-- not a read-only one.
local function first_before(lists, waiter)
  local order = lists.order
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
  for _, other in ipairs(waiters_before(lists, waiter)) do
    local ends, list = registration_of(lists, other)
    if ends > NOW then
      return ends, nil
    end
    redis.call('ZREM', order, other)
    if list then
      redis.call('ZREM', list, other)
    end
  end
  return nil, nil
end

-- Offers a free lock to the waiters before this one. `ends` is the end of the registration of the
-- first of them. Returns the ms until the next attempt of this one.
--
-- The order is read only if the first waiter is idle: a release notifies all waiters, and each of
-- them comes here.
local function offer(lists, waiter, ends)
  if is_idle(ends) then
    for _, other in ipairs(waiters_before(lists, waiter)) do
      local theirs, list = registration_of(lists, other)
      if is_idle(theirs) then
        offer_to(list, other)
      end
    end
  end
  return math.max(math.min(ends - NOW, OFFER), 1)
end

