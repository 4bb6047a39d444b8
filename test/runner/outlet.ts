/** Several files print at a time, and each is to be read as a whole: the first prints as it goes, the others when it is its turn. */

export interface Outlet {
  write(text: string): void;
  end(): void;
}

interface Waiting {
  text: string;
  isEnded: boolean;
}

/** Makes outlets, which print in the order in which they were made. */
export function makeOutlets(print: (text: string) => void): () => Outlet {
  const queue: Waiting[] = [];
  const flush = (): void => {
    for (let first = queue[0]; first !== undefined; first = queue[0]) {
      if (first.text !== '') print(first.text);
      first.text = '';
      if (!first.isEnded) return;
      queue.shift();
    }
  };
  return () => {
    const own: Waiting = { text: '', isEnded: false };
    queue.push(own);
    return {
      write(text) {
        own.text += text;
        flush();
      },
      end() {
        own.isEnded = true;
        flush();
      },
    };
  };
}
