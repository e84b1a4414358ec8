-- Marks this node as one that has forgotten nothing, if it is as it was recalled. ARGV: what the
-- node's own keys begin with, the mark, the token that all its next tokens exceed, the version and
-- the run that were recalled. 0: it was marked or wiped, or restarted, since.
--
-- Whoever recalled it earlier may know of smaller tokens and of a shorter largest TTL, and of a
-- memory that is gone.
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
