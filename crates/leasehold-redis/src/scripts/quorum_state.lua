-- Reads the state of this node.
--
-- KEYS: mark, since, top
-- ARGV: a random name for a run that was not watched before, and what the client read last: the
-- version, the ms for which the run had been watched, and the ms since ('' and 0: nothing)
-- Returns {the run, the marker or '', the highest token, the ms for which the run has been watched,
-- the version that a new marker compares, the wall clock in ms}.
--
-- `since` is run:name:ms. The ms are the sum of the times that clients have measured one after the
-- other, because the clock of this server may be set. A time is added only if no other was added
-- since it started. If the node was wiped, `since` is gone as well.
local mark, since, top = KEYS[1], KEYS[2], KEYS[3]
local name, version, before, watched = ARGV[1], ARGV[2], ARGV[3], ARGV[4] + 0
local run, marker = run_of_server(), redis.call('GETEX', mark) or ''
local highest, stored = redis.call('GETEX', top) or '0', redis.call('GETEX', since) or ''
local first, of, ms = string.match(stored, '^((.-):%w+):(%d+)$')
if run == '' or string.find(marker, ':' .. run .. ':', 1, true) then
  return {run, marker, highest, 0, marker .. '|' .. (first or ''), digits(NOW)}
end
if of ~= run then
  first, ms = run .. ':' .. name, '0'
  redis.call('SET', since, first .. ':0')
elseif version == marker .. '|' .. first and before == ms and watched > 0 then
  ms = digits(ms + watched)
  redis.call('SET', since, first .. ':' .. ms)
end
return {run, marker, highest, ms + 0, marker .. '|' .. first, digits(NOW)}
