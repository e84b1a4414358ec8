-- Gives back an exclusive lock if it is still ours. KEYS: lock. ARGV: value; of a client that asks
-- whether anybody waits, order. 2: freed, and nobody waits; 1: freed; 0: it was not ours. GETEX
-- without options is a GET that counts as a write: it arms no push. A key of another type is not
-- ours; any other error (a server that takes no writes now) leaves it open.
local seen = redis.pcall('GETEX', KEYS[1])
if seen == ARGV[1] then
  local freed = redis.call('DEL', KEYS[1])
  -- Of a sorted set it is an error.
  if ARGV[2] and not redis.pcall('GETEX', ARGV[2]) then
    return 2
  end
  return freed
end
if type(seen) == 'table' and not string.find(seen.err, 'WRONGTYPE', 1, true) then
  return seen
end
return 0
