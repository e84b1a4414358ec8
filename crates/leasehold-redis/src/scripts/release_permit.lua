-- Gives back a permit. KEYS: permits. ARGV: member. 1: freed, 0: it was no longer ours.
local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
return redis.call('ZREM', KEYS[1], ARGV[1])
