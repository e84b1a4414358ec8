-- Marks this node as one that has lost no data, if its state has not changed since it was read.
--
-- KEYS: mark, since, top
-- ARGV: the marker, the token that all its next tokens exceed, the version and the run that were
-- read
-- Returns 1 if it is marked, 0 if it was marked, wiped or restarted meanwhile.
--
-- A client that read an earlier state may know smaller tokens, a shorter largest TTL, and data that
-- is lost.
local mark, since, top = KEYS[1], KEYS[2], KEYS[3]
local marker, above, version, run = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local stored = redis.call('GETEX', mark) or ''
if run_of_server() ~= run then
  return 0
elseif stored == marker then
  return 1
end
local first = string.match(redis.call('GETEX', since) or '', '^(.-:%w+):%d+$')
if stored .. '|' .. (first or '') ~= version then
  return 0
end
local highest = redis.call('GETEX', top)
if not highest or above + 0 > tonumber(highest) then
  redis.call('SET', top, above)
end
redis.call('SET', mark, marker)
redis.call('DEL', since)
return 1
