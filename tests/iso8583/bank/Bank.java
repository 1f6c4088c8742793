import com.solab.iso8583.IsoMessage;
import com.solab.iso8583.IsoType;
import com.solab.iso8583.IsoValue;
import com.solab.iso8583.MessageFactory;
import com.solab.iso8583.parse.FieldParseInfo;
import java.io.DataInputStream;
import java.io.IOException;
import java.net.Socket;
import java.time.ZoneOffset;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** A card authorization host on j8583: `Bank host port ascii|binary requests`. Prints what it saw; exit status 0 if all was as agreed. */
public class Bank {
    static final int[] ECHOED = {3, 4, 7, 11, 12, 13, 32, 37, 41, 42, 49};
    static final int TRIES = 20;

    final String host;
    final int port;
    final boolean binary;
    final MessageFactory<IsoMessage> factory = new MessageFactory<>();
    final String sentAt = ZonedDateTime.now(ZoneOffset.UTC).format(DateTimeFormatter.ofPattern("MMddHHmmss"));
    Socket socket;
    int faults = 0;
    int stan = 500_000;

    Bank(String host, int port, boolean binary) throws IOException {
        this.host = host;
        this.port = port;
        this.binary = binary;
        factory.setUseBinaryMessages(binary);
        factory.setUseBinaryBitmap(true);
        for (int type : new int[] {0x110, 0x130, 0x210, 0x230, 0x410, 0x430, 0x810}) {
            factory.setParseMap(type, layout());
        }
        connect();
    }

    /** How the elements of an answer are to be read. */
    Map<Integer, FieldParseInfo> layout() {
        Map<Integer, FieldParseInfo> map = new HashMap<>();
        put(map, 3, IsoType.NUMERIC, 6);
        put(map, 4, IsoType.NUMERIC, 12);
        put(map, 7, IsoType.NUMERIC, 10);
        put(map, 11, IsoType.NUMERIC, 6);
        put(map, 12, IsoType.NUMERIC, 6);
        put(map, 13, IsoType.NUMERIC, 4);
        put(map, 32, binary ? IsoType.LLBCDBIN : IsoType.LLVAR, 0);
        put(map, 37, IsoType.ALPHA, 12);
        put(map, 38, IsoType.ALPHA, 6);
        put(map, 39, IsoType.ALPHA, 2);
        put(map, 41, IsoType.ALPHA, 8);
        put(map, 42, IsoType.ALPHA, 15);
        put(map, 49, IsoType.ALPHA, 3);
        put(map, 70, IsoType.NUMERIC, 3);
        return map;
    }

    static void put(Map<Integer, FieldParseInfo> map, int number, IsoType type, int length) {
        map.put(number, FieldParseInfo.getInstance(type, length, "ISO-8859-1", false));
    }

    void connect() throws IOException {
        if (socket != null) {
            socket.close();
        }
        socket = new Socket(host, port);
        socket.setTcpNoDelay(true);
        socket.setSoTimeout(60_000);
    }

    void send(IsoMessage message) throws IOException {
        message.write(socket.getOutputStream(), 2);
    }

    IsoMessage read() throws Exception {
        DataInputStream in = new DataInputStream(socket.getInputStream());
        byte[] frame = new byte[in.readUnsignedShort()];
        in.readFully(frame);
        return factory.parseMessage(frame, 0);
    }

    IsoMessage ask(IsoMessage message) throws Exception {
        send(message);
        return read();
    }

    IsoMessage bare(int type) {
        IsoMessage message = new IsoMessage();
        message.setType(type);
        message.setBinary(binary);
        message.setBinaryBitmap(true);
        message.setCharacterEncoding("ISO-8859-1");
        return message;
    }

    IsoMessage network(int code) {
        IsoMessage message = bare(0x800);
        message.setValue(7, sentAt, IsoType.NUMERIC, 10);
        message.setValue(11, ++stan, IsoType.NUMERIC, 6);
        message.setValue(70, code, IsoType.NUMERIC, 3);
        return message;
    }

    /** The nth purchase: a card, an account and an amount of its own. */
    IsoMessage purchase(int type, int n, int ownStan) {
        IsoMessage message = bare(type);
        IsoType digits = binary ? IsoType.LLBCDBIN : IsoType.LLVAR;
        message.setValue(2, pan(n), digits, 0);
        message.setValue(3, "000000", IsoType.NUMERIC, 6);
        message.setValue(4, String.format("%012d", 1000 + n), IsoType.NUMERIC, 12);
        message.setValue(7, sentAt, IsoType.NUMERIC, 10);
        message.setValue(11, String.format("%06d", ownStan), IsoType.NUMERIC, 6);
        message.setValue(12, sentAt.substring(4), IsoType.NUMERIC, 6);
        message.setValue(13, sentAt.substring(0, 4), IsoType.NUMERIC, 4);
        message.setValue(18, "5411", IsoType.NUMERIC, 4);
        message.setValue(22, "051", IsoType.NUMERIC, 3);
        message.setValue(25, "00", IsoType.NUMERIC, 2);
        message.setValue(32, "400123", digits, 0);
        message.setValue(37, String.format("%012d", 600_000_000_000L + n), IsoType.ALPHA, 12);
        message.setValue(41, "TERM0001", IsoType.ALPHA, 8);
        message.setValue(42, String.format("MERCHANT%07d", n % 100), IsoType.ALPHA, 15);
        message.setValue(43, "A SHOP                   BERLIN       DE", IsoType.ALPHA, 40);
        message.setValue(49, "978", IsoType.ALPHA, 3);
        message.setValue(102, "bank-" + n, IsoType.LLVAR, 0);
        return message;
    }

    /** A message about the nth purchase, with a trace number of its own. */
    IsoMessage about(int type, int n, int ownStan) {
        IsoMessage message = purchase(type, n, ownStan);
        String original = String.format("0100%06d%s%011d%011d", n, sentAt, 400123, 0);
        message.setValue(90, original, IsoType.NUMERIC, 42);
        return message;
    }

    static String pan(int n) {
        String head = String.format("411111%09d", n);
        int sum = 0;
        for (int i = 0; i < 15; i++) {
            int digit = head.charAt(14 - i) - '0';
            int counted = i % 2 == 0 ? 2 * digit : digit;
            sum += counted > 9 ? counted - 9 : counted;
        }
        return head + (10 - sum % 10) % 10;
    }

    static String text(IsoMessage message, int number) {
        IsoValue<?> value = message.getField(number);
        return value == null ? null : value.toString();
    }

    void agreed(boolean holds, String what) {
        if (!holds) {
            faults++;
            System.out.println("NOT AS AGREED: " + what);
        }
    }

    void same(IsoMessage sent, IsoMessage got) {
        agreed(got.getType() == (sent.getType() & ~1 | 0x10), "type " + Integer.toHexString(got.getType()));
        for (int number : ECHOED) {
            String was = text(sent, number);
            agreed(was.equals(text(got, number)), "element " + number + " was " + was + ", came back as " + text(got, number));
        }
    }

    /** Sends all at once, takes the answers in whatever order, matched by trace number; repeats what was not decided in time. */
    Map<Integer, IsoMessage> together(List<IsoMessage> requests) throws Exception {
        Map<Integer, IsoMessage> answers = new HashMap<>();
        Map<Integer, IsoMessage> open = new TreeMap<>();
        requests.forEach(request -> open.put(Integer.parseInt(text(request, 11)), request));
        for (int attempt = 0; attempt < TRIES && !open.isEmpty(); attempt++) {
            Map<Integer, IsoMessage> waiting = new TreeMap<>(open);
            Thread writing = new Thread(() -> waiting.values().forEach(this::sent));
            writing.start();
            for (int i = 0; i < waiting.size(); i++) {
                IsoMessage answer = read();
                int key = Integer.parseInt(text(answer, 11));
                agreed(waiting.containsKey(key), "an answer that nobody waits for: " + key);
                if (text(answer, 39).equals("91")) {
                    IsoMessage again = open.get(key);
                    again.setType(again.getType() | 1);
                } else {
                    same(open.remove(key), answer);
                    answers.put(key, answer);
                }
            }
            writing.join();
        }
        agreed(open.isEmpty(), open.size() + " were never answered");
        return answers;
    }

    void sent(IsoMessage message) {
        try {
            send(message);
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    static Map<String, Integer> counted(Map<Integer, IsoMessage> answers) {
        Map<String, Integer> counts = new TreeMap<>();
        answers.values().forEach(answer -> counts.merge(text(answer, 39), 1, Integer::sum));
        return counts;
    }

    void all(String code, Map<Integer, IsoMessage> answers, String what) {
        System.out.println(what + ": " + counted(answers));
        agreed(answers.values().stream().allMatch(answer -> text(answer, 39).equals(code)), what + " are all " + code);
    }

    void manages(int code, String what) throws Exception {
        IsoMessage asked = network(code);
        IsoMessage answer = ask(asked);
        boolean right = answer.getType() == 0x810 && text(answer, 39).equals("00") && text(answer, 11).equals(text(asked, 11));
        agreed(right && text(answer, 70).equals(text(asked, 70)), what);
        System.out.println(what + ": " + text(answer, 39));
    }

    void run(int requests) throws Exception {
        manages(1, "sign on");
        List<IsoMessage> first = new ArrayList<>();
        for (int n = 1; n <= requests; n++) { // a trace number of zeros would say that there is none
            first.add(purchase(0x100, n, n));
        }
        long began = System.nanoTime();
        Map<Integer, IsoMessage> answers = together(first);
        System.out.printf("authorizations in flight at once: %d, answered in %d ms%n", requests, (System.nanoTime() - began) / 1_000_000);
        System.out.println("authorizations: " + counted(answers));
        List<Integer> approved = new ArrayList<>();
        answers.forEach((n, answer) -> {
            if (text(answer, 39).equals("00")) {
                approved.add(n);
                agreed(text(answer, 38) != null && text(answer, 38).length() == 6, "approval code of " + n);
            }
        });
        agreed(approved.size() * 10 >= requests * 9, "nine of ten are approved");
        manages(301, "echo");
        duplicates(answers, approved.subList(0, approved.size() / 5));
        int half = approved.size() / 2;
        ended(0x400, approved.subList(0, half), "reversals");
        ended(0x220, approved.subList(half, approved.size()), "captures");
        connect();
        duplicates(answers, approved.subList(0, 10));
        manages(2, "sign off");
        agreed(text(ask(purchase(0x100, requests + 1, requests + 1)), 39).equals("91"), "nothing is decided after sign off");
        System.out.println(faults + " faults");
    }

    /** The same again gets the same answer; the same key with another amount is a duplicate. */
    void duplicates(Map<Integer, IsoMessage> before, List<Integer> numbers) throws Exception {
        List<IsoMessage> again = new ArrayList<>();
        List<IsoMessage> changed = new ArrayList<>();
        for (int n : numbers) {
            again.add(purchase(0x101, n, n));
            IsoMessage other = purchase(0x100, n, n);
            other.setValue(4, String.format("%012d", 9000 + n), IsoType.NUMERIC, 12);
            changed.add(other);
        }
        Map<Integer, IsoMessage> answers = together(again);
        answers.forEach((n, answer) -> agreed(text(answer, 38).equals(text(before.get(n), 38)), "the same approval code for " + n));
        all("00", answers, "repeats");
        all("94", together(changed), "duplicates");
    }

    /** Reversed or captured once, repeated, and then once more by another message. */
    void ended(int type, List<Integer> numbers, String what) throws Exception {
        List<IsoMessage> once = new ArrayList<>();
        List<IsoMessage> repeats = new ArrayList<>();
        List<IsoMessage> others = new ArrayList<>();
        for (int n : numbers) {
            once.add(about(type, n, 100_000 + n));
            repeats.add(about(type | 1, n, 100_000 + n));
            others.add(about(type, n, 200_000 + n));
        }
        all("00", together(once), what);
        all("00", together(repeats), what + " repeated");
        all("21", together(others), what + " of what had ended");
    }

    public static void main(String[] args) throws Exception {
        Bank bank = new Bank(args[0], Integer.parseInt(args[1]), args[2].equals("binary"));
        bank.run(Integer.parseInt(args[3]));
        bank.socket.close();
        System.exit(bank.faults == 0 ? 0 : 1);
    }
}
