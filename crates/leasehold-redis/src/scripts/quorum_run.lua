-- Returns the run of this server and the history of its data; '' without the right to INFO.
-- `run_id` changes with a restart, and `master_replid2` when a replica, which has the data of
-- another server, becomes a primary. Every script reads them: behind a proxy, the server can
-- restart while the connection stays.
local function run_of_server()
  local server, replication = redis.pcall('INFO', 'server'), redis.pcall('INFO', 'replication')
  if type(server) ~= 'string' or type(replication) ~= 'string' then
    return ''
  end
  local run, history = string.match(server, 'run_id:(%w+)'), string.match(replication, 'master_replid2:(%w+)')
  return run and run .. '-' .. (history or '') or ''
end

