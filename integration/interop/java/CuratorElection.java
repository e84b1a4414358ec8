import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.leader.LeaderSelector;
import org.apache.curator.framework.recipes.leader.LeaderSelectorListenerAdapter;
import org.apache.curator.retry.ExponentialBackoffRetry;

/** Curator's elections, told line by line: see ../README.md. Arguments: servers, `latch` or `selector`, path, id. */
final class CuratorElection {
    private static void send(String line) {
        System.out.println("peer> " + line);
    }

    /** One candidacy. */
    private interface Candidate {
        boolean leadsWithin(long millis) throws Exception;

        void resign() throws Exception;
    }

    private static Candidate latch(CuratorFramework client, String path, String id) throws Exception {
        var latch = new LeaderLatch(client, path, id);
        latch.start();
        return new Candidate() {
            @Override
            public boolean leadsWithin(long millis) throws Exception {
                return latch.await(millis, TimeUnit.MILLISECONDS);
            }

            @Override
            public void resign() throws Exception {
                latch.close();
            }
        };
    }

    private static Candidate selector(CuratorFramework client, String path, String id) {
        var leads = new CountDownLatch(1);
        var resigned = new CountDownLatch(1);
        var selector = new LeaderSelector(client, path, new LeaderSelectorListenerAdapter() {
            @Override
            public void takeLeadership(CuratorFramework client) throws Exception {
                leads.countDown();
                resigned.await();
            }
        });
        selector.setId(id);
        selector.start();
        return new Candidate() {
            @Override
            public boolean leadsWithin(long millis) throws Exception {
                return leads.await(millis, TimeUnit.MILLISECONDS);
            }

            @Override
            public void resign() {
                resigned.countDown();
                selector.close();
            }
        };
    }

    /** Returns the id of the present leader, which is read from the servers. */
    private static String leader(CuratorFramework client, String kind, String path) throws Exception {
        if (kind.equals("latch")) {
            return new LeaderLatch(client, path).getLeader().getId();
        }
        return new LeaderSelector(client, path, new LeaderSelectorListenerAdapter() {
            @Override
            public void takeLeadership(CuratorFramework client) {
            }
        }).getLeader().getId();
    }

    public static void main(String[] arguments) throws Exception {
        var client = CuratorFrameworkFactory.newClient(arguments[0], 10_000, 10_000, new ExponentialBackoffRetry(50, 5));
        client.start();
        client.blockUntilConnected();
        String kind = arguments[1], path = arguments[2], id = arguments[3];
        Candidate candidate = null;
        send("ready");
        var commands = new BufferedReader(new InputStreamReader(System.in));
        for (String command = commands.readLine(); command != null; command = commands.readLine()) {
            if (command.equals("lock") || command.equals("try")) {
                candidate = switch (kind) {
                    case "latch" -> latch(client, path, id);
                    case "selector" -> selector(client, path, id);
                    default -> throw new IllegalArgumentException("no such kind: " + kind);
                };
            }
            switch (command) {
                case "lock" -> send(candidate.leadsWithin(60_000) ? "held" : "refused");
                // Long enough for the round trips: Curator joins the queue and leaves it again.
                case "try" -> {
                    boolean leads = candidate.leadsWithin(300);
                    if (!leads) {
                        candidate.resign();
                    }
                    send(leads ? "held" : "refused");
                }
                case "release" -> {
                    candidate.resign();
                    send("released");
                }
                case "leader" -> send("leader " + leader(client, kind, path));
                default -> throw new IllegalArgumentException("no such command: " + command);
            }
        }
        client.close();
    }
}
