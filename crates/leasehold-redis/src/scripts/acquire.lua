-- Acquires the lock exclusively. KEYS: lock. ARGV: value, ttl in ms, token key, flags, the prefix
-- of the keys of waiters. The last two are optional. Returns the token, as a string, or a refusal:
-- see `refusal`, and `Refusal` in Rust.
--
-- Flags: `w` waits; `c` yields to waiters; `r` was registered before; `o` keeps the order of
-- waiters; `t` holds the lock already and has no token.
--
-- Only the lock is declared, and only a refusal runs a read-only command. Therefore a refusal arms
-- the notification (CLIENT TRACKING) in the same round trip, and uncontended pairs cause no push.
local lock, value, ttl, token_key, flags, base = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] or '', ARGV[5]

-- A yielding request goes behind all waiters.
local earlier, place
if string.find(flags, '[co]') then
  earlier, place = yield_to_earlier(base, value)
end

local taken = false
if string.find(flags, 't', 1, true) then
  -- A key of another type is an error here, and so is a server that accepts no writes.
  taken = redis.call('GETEX', lock) == value
elseif not earlier then
  taken = redis.call('SET', lock, value, 'NX', 'PX', ttl)
end
if not taken then
  local why, left = 0, redis.call('PTTL', lock)
  if earlier and left == -2 then
    why, left = 1, offer(base, value, earlier)
  end
  if place or string.find(flags, 'w', 1, true) then
    register(base, 'writers', value, place)
  end
  return refusal(why, left, lock)
end

-- The token: above the last exclusive one by two, so that readers in between have room, and never
-- below the clock.
local expiry = 86400
if ttl + 0 > 43200000 then
  expiry = math.ceil(ttl / 500)
end
local time = redis.call('TIME')
local token = string.format('%s%06d', time[1], time[2])
local last = redis.pcall('SET', token_key, token, 'EX', expiry, 'GET')
if last then
  if type(last) == 'table' then
    redis.call('DEL', lock)
    return last
  end
  local least = math.max(tonumber(last) or 2^53, 0) + 2
  if least >= 2^53 then
    redis.call('DEL', lock)
    redis.call('SET', token_key, last, 'EX', expiry)
    return redis.error_reply('LEASETOKEN no token below 2^53 is left')
  end
  if least > tonumber(token) then
    token = string.format('%.0f', least)
    redis.call('SET', token_key, token, 'EX', expiry)
  end
end
if string.find(flags, 'r', 1, true) then
  deregister(base, 'writers', value, place)
end
return token
