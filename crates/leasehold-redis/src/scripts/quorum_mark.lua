-- Marks this node as one that has lost no data, if its state has not changed since it was read.
-- ARGV: the prefix of the node's keys, the marker, the token that all its next tokens exceed, the
-- version and the run that were read. Returns 1 if it is marked, 0 if it was marked, wiped or
-- restarted meanwhile.
--
-- A client that read an earlier state may know smaller tokens, a shorter largest TTL, and data that
-- is lost.
local node = ARGV[1]
local mark = redis.call('GETEX', node .. 'mark') or ''
if run_of_server() ~= ARGV[5] then
  return 0
end
if mark == ARGV[2] then
  return 1
end
local first = string.match(redis.call('GETEX', node .. 'since') or '', '^(.-:%w+):%d+$')
if mark .. '|' .. (first or '') ~= ARGV[4] then
  return 0
end
local highest = redis.call('GETEX', node .. 'top')
if not highest or ARGV[3] + 0 > tonumber(highest) then
  redis.call('SET', node .. 'top', ARGV[3])
end
redis.call('SET', node .. 'mark', ARGV[2])
redis.call('DEL', node .. 'since')
return 1
