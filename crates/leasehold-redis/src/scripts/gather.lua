-- Many exclusive operations on different keys in one call. No key is declared, so that none is tracked.
-- ARGV: one run per operation: `a`, lock, value, ttl, token key | `r`, lock, value | `n`, lock, value, ttl.
-- Answers a list: for `a` the token or 0 (refused; nothing was changed), for `r` and `n` as release.lua and renew.lua. An
-- operation that fails leaves its error in its place and the others alone.
local call, pcall, answers, at, n = redis.call, redis.pcall, {}, 1, #ARGV
local time = call('TIME')
local now = string.format('%s%06d', time[1], time[2])
local now_number = tonumber(now)
local count = 0
while at <= n do
  local kind, lock, value = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local answer
  if kind == 'a' then
    local ttl, token_key = ARGV[at + 3], ARGV[at + 4]
    at = at + 5
    answer = pcall('SET', lock, value, 'NX', 'PX', ttl)
    if not answer then
      answer = 0
    elseif not answer.err then
      local expiry = 86400
      if ttl + 0 > 43200000 then
        expiry = math.ceil(ttl / 500)
      end
      local last = pcall('SET', token_key, now, 'EX', expiry, 'GET')
      answer = now
      if last then
        if type(last) == 'table' then
          call('DEL', lock)
          answer = last
        else
          local least = (tonumber(last) or 2^53) + 2
          if least >= 2^53 then
            call('DEL', lock)
            call('SET', token_key, last, 'EX', expiry)
            answer = redis.error_reply('LEASETOKEN no token below 2^53 is left')
          elseif least > now_number then
            answer = string.format('%.0f', least)
            call('SET', token_key, answer, 'EX', expiry)
          end
        end
      end
    end
  else
    answer = 0
    if pcall('GETEX', lock) == value then
      if kind == 'r' then
        answer = pcall('DEL', lock)
      else
        answer = pcall('PEXPIRE', lock, ARGV[at + 3])
      end
    end
    if kind == 'r' then
      at = at + 3
    else
      at = at + 4
    end
  end
  count = count + 1
  answers[count] = answer
end
return answers
