import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.concurrent.TimeUnit;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.retry.ExponentialBackoffRetry;

/** Curator's locks, told line by line: see ../README.md. Arguments: servers, `mutex`, `read` or `write`, path. */
final class CuratorLock {
    private static void send(String line) {
        System.out.println("peer> " + line);
    }

    private static InterProcessMutex lock(CuratorFramework client, String kind, String path) {
        return switch (kind) {
            case "mutex" -> new InterProcessMutex(client, path);
            case "read" -> new InterProcessReadWriteLock(client, path).readLock();
            case "write" -> new InterProcessReadWriteLock(client, path).writeLock();
            default -> throw new IllegalArgumentException("no such kind: " + kind);
        };
    }

    public static void main(String[] arguments) throws Exception {
        var client = CuratorFrameworkFactory.newClient(arguments[0], 10_000, 10_000, new ExponentialBackoffRetry(50, 5));
        client.start();
        client.blockUntilConnected();
        var lock = lock(client, arguments[1], arguments[2]);
        send("ready");
        var commands = new BufferedReader(new InputStreamReader(System.in));
        for (String command = commands.readLine(); command != null; command = commands.readLine()) {
            switch (command) {
                case "lock" -> {
                    lock.acquire();
                    send("held");
                }
                // Long enough for the round trips: Curator joins the queue and leaves it again.
                case "try" -> send(lock.acquire(300, TimeUnit.MILLISECONDS) ? "held" : "refused");
                case "release" -> {
                    lock.release();
                    send("released");
                }
                default -> throw new IllegalArgumentException("no such command: " + command);
            }
        }
        client.close();
    }
}
