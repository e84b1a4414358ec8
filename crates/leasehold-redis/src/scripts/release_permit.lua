-- Releases a permit. KEYS: permits. ARGV: member. Returns 1 if it was released, 0 if it was not
-- held.
local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call('ZREM', KEYS[1], ARGV[1])
