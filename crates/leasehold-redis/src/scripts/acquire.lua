-- Takes the lock exclusively. KEYS: lock. ARGV: value, ttl in ms, token key, flags (w aiting, c
-- ourteous, r egistered before, in o rder, t aken before, without a token), what the keys of
-- waiters begin with. The last two may be left out. Granted: the token, as a string. Refused: see
-- `refusal`, and `Refusal` in Rust.
--
-- Only the lock is declared, and nothing but a refusal runs a read-only command: that arms the
-- wake-up (CLIENT TRACKING) in this very round trip, and lets uncontended pairs cause no push.
local lock, value, ttl, token_key, flags, base = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] or '', ARGV[5]

-- A yielding request goes behind all who wait.
local earlier, place
if string.find(flags, '[co]') then
  earlier, place = take_turn(base, value)
end

local taken = false
if string.find(flags, 't', 1, true) then
  -- A key of another type is an error then, and so is a server that takes no writes now.
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
  strike_off(base, 'writers', value, place)
end
return token
