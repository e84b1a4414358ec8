-- Who waits for an exclusive lock: stands before acquire.lua and quorum_acquire.lua. `base` is what the keys of waiters begin
-- with: `writers` and `waiters` say until when a registration lives, `order` since when it waits.
-- GETEX without options is a GET that counts as a write; of a sorted set it is an error, of nothing it is false.
local function millis(time)
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether somebody else waits.
local function another_waits(base, waiter)
  for _, set in ipairs({base .. 'writers', base .. 'waiters'}) do
    if redis.pcall('GETEX', set) then
      redis.call('ZREMRANGEBYSCORE', set, '-inf', millis(redis.call('TIME')))
      for _, member in ipairs(redis.call('ZRANGE', set, 0, 1)) do
        if member ~= waiter then
          return true
        end
      end
    end
  end
  return false
end

-- Whether somebody who began to wait earlier goes first, as its registration lives; and where we stood if we were the first.
-- Usually we are, and struck off, which is one command and no read-only one.
local function take_turn(base, waiter)
  local order = base .. 'order'
  local first = redis.pcall('ZPOPMIN', order)
  if first[1] == waiter then
    return false, first[2]
  elseif not first[1] then
    return false, nil
  end
  redis.pcall('ZADD', order, first[2], first[1])
  local now = millis(redis.call('TIME'))
  for _, member in ipairs(redis.call('ZRANGE', order, 0, 7)) do
    if member == waiter then
      break
    end
    local lives = (redis.call('ZSCORE', base .. 'writers', member) or 0) - now
    if lives > 0 then
      if redis.call('PTTL', order) < 0 then
        redis.call('PEXPIRE', order, lives)
      end
      return true, nil
    end
    redis.call('ZREM', order, member)
  end
  return false, nil
end

-- Registers it for so many ms, where it stood or at the end.
local function register(base, waiter, lives, place)
  local writers, order, time = base .. 'writers', base .. 'order', redis.call('TIME')
  redis.call('ZADD', writers, millis(time) + lives, waiter)
  redis.call('PEXPIRE', writers, lives + 60000)
  redis.call('ZADD', order, 'NX', place or time[1] * 1000000 + time[2], waiter)
  if redis.call('PTTL', order) < lives then
    redis.call('PEXPIRE', order, lives)
  end
end

-- Strikes off who has the lock now. Where it did not ask in order, those before it did not take it in time.
local function strike_off(base, waiter, in_order, place)
  local order = base .. 'order'
  redis.call('ZREM', base .. 'writers', waiter)
  if not in_order then
    local rank = redis.call('ZRANK', order, waiter)
    if rank then
      redis.call('ZREMRANGEBYRANK', order, 0, rank)
    end
  elseif not place then
    redis.call('ZREM', order, waiter)
  end
end

