-- A lock that readers hold. Its key is a string that expires with the last of them, so that
-- programs without readers see it as held. The sorted set `readers` has the holders.

-- Returns the end of the registration of a writer before this reader, or nil. Every writer is
-- before a reader that is not registered yet.
local function writer_before(lists, reader)
  if not redis.pcall('GETEX', lists.writers) then
    return nil
  end
  expire_members(lists.writers)
  local writers = redis.call('ZRANGE', lists.writers, 0, -1, 'WITHSCORES')
  local place = redis.call('ZSCORE', lists.order, reader)
  for i = 1, #writers, 2 do
    local since = place and redis.call('ZSCORE', lists.order, writers[i])
    if not since or since + 0 < place + 0 then
      return writers[i + 1] + 0
    end
  end
  return nil
end

-- Refuses a reader, which is notified of changes of the lock and of the list of waiting writers.
-- `ends` is the end of the registration of the writer before it.
local function refuse_reader(reason, lock, lists, reader, ends, waits)
  local left = redis.call('PTTL', lock)
  local last = redis.call('ZREVRANGE', lists.writers, 0, 0, 'WITHSCORES')[2]
  local seen = NOW + left + (last or 0)
  if reason == OFFERED then
    left = offer(lists, reader, ends)
  elseif reason == BEHIND_WRITER then
    left = last - NOW
  end
  if waits then
    enqueue(lists, lists.readers, reader)
  end
  return refusal(reason, left, lock, seen)
end

-- Adds a reader to a lock that is free or held by readers. `value` replaces that of the lock; nil
-- leaves it.
local function add_reader(lock, readers, is_free, value, reader, ttl)
  if is_free then
    -- Whoever is still listed held it before the key vanished, and lost it then.
    redis.call('DEL', readers)
    redis.call('SET', lock, value, 'PX', ttl)
  else
    expire_members(readers)
    if value then
      redis.call('SET', lock, value, 'KEEPTTL')
    end
    if redis.call('PTTL', lock) < ttl then
      redis.call('PEXPIRE', lock, ttl)
    end
  end
  hold(readers, reader, ttl)
end

