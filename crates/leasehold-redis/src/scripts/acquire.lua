-- Takes the lock exclusively.
-- KEYS: lock. ARGV: value, ttl in ms, token key, flags (w aiting, c ourteous, r egistered before, in o rder, t aken
-- before, without a token), what the keys of waiters begin with, token floor. The last three may be left out.
-- Granted: the token, as a string. Refused: {why, ms until trying again makes sense}; see `Refusal` in Rust.
--
-- Only the lock is declared, and nothing but a refusal runs a read-only command: that arms the wake-up (CLIENT
-- TRACKING) in this very round trip, and lets uncontended pairs cause no push. GETEX without options is a GET that counts
-- as a write; of a sorted set it is an error, of nothing it is false.
local lock, value, ttl, token_key, flags, base = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] or '', ARGV[5]
local waiting = string.find(flags, 'w', 1, true)

if string.find(flags, 'c', 1, true) then
  for _, set in ipairs({base .. 'writers', base .. 'waiters'}) do
    if redis.pcall('GETEX', set) then
      local time = redis.call('TIME')
      redis.call('ZREMRANGEBYSCORE', set, '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
      for _, member in ipairs(redis.call('ZRANGE', set, 0, 1)) do
        if member ~= value then
          return {1, redis.call('PTTL', lock)}
        end
      end
    end
  end
end

-- Who began to wait earlier goes first, as long as its registration lives. Usually that is us: we are struck off, which is
-- one command, and no read-only one. `place` is where we stood.
local in_order, order, earlier, place = string.find(flags, 'o', 1, true), (base or '') .. 'order', false, nil
local first = in_order and redis.pcall('ZPOPMIN', order) or {}
if first[1] == value then
  place = first[2]
elseif first[1] then
  redis.pcall('ZADD', order, first[2], first[1])
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  for _, member in ipairs(redis.call('ZRANGE', order, 0, 7)) do
    if member == value then
      break
    end
    local lives = (redis.call('ZSCORE', base .. 'writers', member) or 0) - now
    if lives > 0 then
      earlier = true
      if redis.call('PTTL', order) < 0 then
        redis.call('PEXPIRE', order, lives)
      end
      break
    end
    redis.call('ZREM', order, member)
  end
end

local taken = false
if string.find(flags, 't', 1, true) then
  -- A key of another type is an error then, and so is a server that takes no writes now.
  taken = redis.call('GETEX', lock) == value
elseif not earlier then
  taken = redis.call('SET', lock, value, 'NX', 'PX', ttl)
end
if not taken then
  local left, time = redis.call('PTTL', lock), redis.call('TIME')
  local lives = math.max(left, 0) + math.min(3000, ttl + 0)
  if waiting then
    local writers = base .. 'writers'
    redis.call('ZADD', writers, time[1] * 1000 + math.floor(time[2] / 1000) + lives, value)
    redis.call('PEXPIRE', writers, lives + 60000)
  end
  if waiting or place then
    redis.call('ZADD', order, 'NX', place or time[1] * 1000000 + time[2], value)
    if redis.call('PTTL', order) < lives then
      redis.call('PEXPIRE', order, lives)
    end
  end
  return {earlier and left == -2 and 1 or 0, left}
end

-- The token: above the last exclusive one by two, so that readers in between have room, and never below the clock.
local expiry = 86400
if ttl + 0 > 43200000 then
  expiry = math.ceil(ttl / 500)
end
local time = redis.call('TIME')
local token = string.format('%s%06d', time[1], time[2])
local last = redis.pcall('SET', token_key, token, 'EX', expiry, 'GET')
local floor = ARGV[6]
if last or floor then
  if type(last) == 'table' then
    redis.call('DEL', lock)
    return last
  end
  local least = math.max(tonumber(last or '0') or 2^53, 0) + 2
  if floor then
    least = math.max(least, floor + 1)
  end
  if least >= 2^53 then
    redis.call('DEL', lock)
    if last then
      redis.call('SET', token_key, last, 'EX', expiry)
    else
      redis.call('DEL', token_key)
    end
    return redis.error_reply('LEASETOKEN no token below 2^53 is left')
  end
  if least > tonumber(token) then
    token = string.format('%.0f', least)
    redis.call('SET', token_key, token, 'EX', expiry)
  end
end
if string.find(flags, 'r', 1, true) then
  redis.call('ZREM', base .. 'writers', value)
  if not in_order then
    -- Those before it did not take it in time.
    local rank = redis.call('ZRANK', order, value)
    if rank then
      redis.call('ZREMRANGEBYRANK', order, 0, rank)
    end
  elseif not place then
    redis.call('ZREM', order, value)
  end
end
return token
